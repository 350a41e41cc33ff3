"""The published sizes of Qwen-VL: arguments, tensors, numbers of parameters."""

import math

import pytest

from keras_betakd.qwen_vl.configurations import backbone_arguments
from keras_betakd.qwen_vl.shapes import tensor_shapes

VISION = {
    **{"depth": 32, "num_heads": 16, "in_chans": 3, "patch_size": 14},
    **{"spatial_merge_size": 2, "temporal_patch_size": 2},
}
WINDOWS = {"window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]}


def published(hidden, layers, heads, shared, inner, rows, is_tied, vision, **more):
    """The config.json of a published size."""
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "intermediate_size": inner,
        "vocab_size": rows,
        "tie_word_embeddings": is_tied,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vision_config": {**VISION, **vision},
        **more,
    }


def qwen2(*sizes):
    vision = {"embed_dim": 1280, "mlp_ratio": 4, "hidden_size": sizes[0]}
    return published(*sizes, vision, model_type="qwen2_vl")


def qwen2_5(*sizes, vision_inner=3420):
    vision = {"hidden_size": 1280, "intermediate_size": vision_inner, **WINDOWS}
    vision["out_hidden_size"] = sizes[0]
    return published(*sizes, vision, model_type="qwen2_5_vl")


def qwen3(*sizes, depth, width, inner, deepstack):
    vision = {"depth": depth, "hidden_size": width, "intermediate_size": inner}
    vision |= {"num_position_embeddings": 2304, "patch_size": 16}
    vision |= {"out_hidden_size": sizes[0], "deepstack_visual_indexes": deepstack}
    more = {
        "head_dim": 128,
        "rope_theta": 5000000,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20]},
    }
    return published(*sizes, vision, model_type="qwen3_vl", **more)


SMALL = {"depth": 24, "width": 1024, "inner": 4096, "deepstack": [5, 11, 17]}
LARGE = {"depth": 27, "width": 1152, "inner": 4304, "deepstack": [8, 16, 24]}
TEXT_3B = (2048, 36, 16, 2, 11008, 151936, True)
TEXT_7B = (3584, 28, 28, 4, 18944, 152064, False)
TEXT_32B = (5120, 64, 40, 8, 27648, 152064, False)
TEXT_72B = (8192, 80, 64, 8, 29568, 152064, False)


@pytest.mark.parametrize(
    "config, total, in_vision, tensors",
    [
        (qwen2(1536, 28, 12, 2, 8960, 151936, True), 2208985600, None, None),
        (qwen2(*TEXT_7B), 8291375616, None, None),
        (qwen2(*TEXT_72B), 73405560320, None, None),
        (qwen2_5(*TEXT_3B), 3754622976, 668684288, 824),
        (qwen2_5(*TEXT_7B), 8292166656, 676550144, 729),
        (qwen2_5(*TEXT_32B, vision_inner=3456), 33452718336, 688841984, 1161),
        (qwen2_5(*TEXT_72B, vision_inner=3456), 73410777344, 704573696, 1353),
        (qwen2_5(*TEXT_72B), 73406351360, None, 1353),
        (
            qwen3(2048, 28, 16, 8, 6144, 151936, True, **SMALL),
            *(2127532032, 406957056, None),
        ),
        (
            qwen3(2560, 36, 32, 8, 9728, 151936, True, **SMALL),
            *(4437815808, 415347712, None),
        ),
        (
            qwen3(4096, 36, 32, 8, 12288, 151936, False, **LARGE),
            *(8767123696, 576388336, None),
        ),
        (
            qwen3(5120, 64, 64, 8, 25600, 151936, False, **LARGE),
            *(33357390064, 595266800, None),
        ),
    ],
)
def test_parameters_of_the_published_sizes(config, total, in_vision, tensors):
    """As counted in models of the published code, without their weights."""
    shapes = tensor_shapes(backbone_arguments(config))
    counts = {name: math.prod(shape) for name, shape in shapes.items()}
    assert sum(counts.values()) == total
    if in_vision is not None:
        found = [count for name, count in counts.items() if name.startswith("visual.")]
        assert sum(found) == in_vision
    if tensors is not None:
        assert len(shapes) == tensors


def test_arguments_of_a_published_size():
    found = backbone_arguments(qwen2_5(*TEXT_3B))
    assert found == {
        "family": "qwen2_5_vl",
        "vocabulary_size": 151936,
        "num_layers": 36,
        "num_query_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "hidden_dim": 2048,
        "intermediate_dim": 11008,
        "vision_num_layers": 32,
        "vision_num_heads": 16,
        "vision_hidden_dim": 1280,
        "vision_intermediate_dim": 3420,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "window_size": 112,
        "full_attention_layers": (7, 15, 23, 31),
        "rope_max_wavelength": 1000000.0,
        "rope_sections": (16, 24, 24),
        "tie_word_embeddings": True,
        "layer_norm_epsilon": 1e-6,
    }
