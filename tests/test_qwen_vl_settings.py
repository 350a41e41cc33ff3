"""Settings of Qwen-VL checkpoints: each is checked before a model is made."""

import json
import math

import pytest
from fuzz_cases import EXAMPLES
from hypothesis import given, settings
from json_mutations import mutated
from qwen_vl_folders import (
    config,
    doubled_config,
    newer_config,
    outer,
    rope,
    text,
    vision,
    without,
)

from keras_betakd.qwen_vl.configurations import backbone_arguments
from keras_betakd.qwen_vl.shapes import tensor_shapes

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
many = settings(max_examples=50 * settings.default.max_examples)  # milliseconds each
VISION_SIZES = (
    *("depth", "num_heads", "in_chans", "patch_size", "spatial_merge_size"),
    *("temporal_patch_size", "window_size", "fullatt_block_indexes", "hidden_size"),
    *("intermediate_size", "out_hidden_size"),
)
SIZES = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads"
SIZES = (*SIZES.split(), "num_key_value_heads")
WRONG = (0, -1, math.nan, math.inf, True, "2", [2.5], {"a": 1})


def refused(family, change, key):
    values = config(family)
    change(values)
    with pytest.raises(ValueError, match=key) as caught:
        backbone_arguments(values, source="'a/config.json'")
    assert "'a/config.json'" in str(caught.value)


@pytest.mark.parametrize("value", WRONG)
def test_wrong_sizes_are_refused_by_file_and_name(value):
    for key in (*SIZES, "rms_norm_eps", "rope_theta"):
        refused("qwen2_5_vl", text(**{key: value}), key)
    for key in VISION_SIZES:
        refused("qwen2_5_vl", vision(**{key: value}), key)
    for key in ("embed_dim", "mlp_ratio", "hidden_size"):
        refused("qwen2_vl", vision(**{key: value}), key)
    refused("qwen3_vl", text(head_dim=value), "head_dim")
    for key in ("num_position_embeddings", "deepstack_visual_indexes"):
        refused("qwen3_vl", vision(**{key: value}), key)


@pytest.mark.parametrize(
    "key",
    [
        *SIZES,
        *("rms_norm_eps", "rope_scaling", "rope_theta", "vision_config", "model_type"),
        "rope_scaling/mrope_section",
        *(f"vision_config/{key}" for key in VISION_SIZES if key != "in_chans"),
    ],
)
def test_no_setting_is_filled_in(key):
    """The defaults of Hugging Face's classes are those of no published model."""
    name = "mrope_section" if key == "rope_scaling" else key.split("/")[-1]
    refused("qwen2_5_vl", without(key), name)


@pytest.mark.parametrize(
    "family, change, key",
    [
        ("qwen2_5_vl", text(hidden_act="gelu"), "hidden_act"),
        ("qwen2_5_vl", text(rms_norm_eps=1.5), "rms_norm_eps"),
        ("qwen2_5_vl", text(num_key_value_heads=3), "num_key_value_heads"),
        ("qwen2_5_vl", text(num_attention_heads=6), "num_attention_heads"),
        ("qwen2_5_vl", text(head_dim=8), "head_dim"),
        ("qwen2_5_vl", text(hidden_size=60, num_attention_heads=4), "head_dim"),
        ("qwen2_5_vl", text(partial_rotary_factor=0.5), "partial_rotary_factor"),
        ("qwen2_5_vl", text(rope_theta=0.5), "rope_theta"),
        ("qwen2_5_vl", text(rope_scaling=5), "rope_scaling"),
        ("qwen2_5_vl", text(rope_parameters=[]), "rope_parameters"),
        ("qwen2_5_vl", rope(type="yarn"), "type='yarn'"),
        ("qwen2_5_vl", rope(rope_type="linear"), "rope_type='linear'"),
        ("qwen2_5_vl", rope(mrope_section=[2, 3]), "mrope_section"),
        ("qwen2_5_vl", rope(mrope_section=[2, 3, 4]), "mrope_section"),
        ("qwen2_5_vl", rope(mrope_section=[-1, 4, 5]), "mrope_section"),
        ("qwen2_5_vl", rope(mrope_section=[2.0, 3, 3]), "mrope_section"),
        ("qwen2_5_vl", rope(mrope_interleaved=True), "mrope_interleaved"),
        ("qwen3_vl", rope(mrope_interleaved=False), "mrope_interleaved"),
        ("qwen3_vl", text(attention_bias=True), "attention_bias"),
        ("qwen3_vl", text(head_dim=15), "head_dim"),
        ("qwen2_5_vl", text(use_sliding_window=1), "use_sliding_window"),
        (
            "qwen2_5_vl",
            text(use_sliding_window=True, max_window_layers=1),
            "use_sliding_window",
        ),
        ("qwen2_5_vl", text(layer_types=["sliding_attention"] * 2), "layer_types"),
        ("qwen2_5_vl", outer(tie_word_embeddings=1), "tie_word_embeddings"),
        ("qwen2_5_vl", outer(quantization_config={"bits": 4}), "quantization_config"),
        ("qwen2_5_vl", outer(vision_config=None), "vision_config"),
        ("qwen3_vl", outer(text_config=[]), "text_config"),
        ("qwen2_5_vl", vision(hidden_act="quick_gelu"), "hidden_act"),
        ("qwen2_vl", vision(hidden_act="silu"), "hidden_act"),
        ("qwen3_vl", vision(hidden_act="gelu"), "hidden_act"),
        ("qwen2_5_vl", vision(in_channels=4), "in_channels"),
        ("qwen2_5_vl", vision(spatial_patch_size=8), "spatial_patch_size"),
        ("qwen2_5_vl", vision(out_hidden_size=48), "out_hidden_size"),
        ("qwen2_vl", vision(hidden_size=48), "hidden_size"),
        ("qwen2_vl", vision(mlp_ratio=1e-9), "mlp_ratio"),
        ("qwen2_5_vl", vision(num_heads=16), "num_heads"),
        ("qwen2_5_vl", vision(window_size=7), "window_size"),
        ("qwen2_5_vl", vision(window_size=10**6), "window_size"),
        ("qwen2_5_vl", vision(fullatt_block_indexes=[-1]), "fullatt_block_indexes"),
        ("qwen2_5_vl", vision(fullatt_block_indexes=[1, 7]), "fullatt_block_indexes"),
        ("qwen2_5_vl", vision(layer_norm_eps=1e-5), "layer_norm_eps"),
        (
            "qwen2_5_vl",
            vision(rope_parameters={"rope_type": "axial", "rope_theta": 100.0}),
            "rope_theta",
        ),
        ("qwen3_vl", vision(num_position_embeddings=35), "num_position_embeddings"),
        ("qwen3_vl", vision(deepstack_visual_indexes=[2, 0]), "deepstack"),
        ("qwen3_vl", vision(deepstack_visual_indexes=[0, 3]), "deepstack"),
        ("qwen3_vl", text(num_hidden_layers=1), "deepstack"),
    ],
)
def test_other_architectures_are_refused(family, change, key):
    refused(family, change, key)


@pytest.mark.parametrize(
    "change",
    [
        text(use_sliding_window=True, max_window_layers=2),
        text(layer_types=["full_attention"] * 2),
        text(hidden_act=None, head_dim=16, attention_dropout=0.1, sliding_window=None),
        vision(fullatt_block_indexes=[1]),
        vision(hidden_act=None, tokens_per_second=4, in_channels=3),
        vision(rope_parameters={"rope_type": "axial", "rope_theta": 10000.0}),
        outer(tie_word_embeddings=None, torch_dtype=None, quantization_config=None),
    ],
)
def test_settings_without_effect(change):
    values = config("qwen2_5_vl")
    expected = backbone_arguments(values)
    change(values)
    assert backbone_arguments(values) == expected


@many
@given(
    changed=mutated(config("qwen2_vl"))
    | mutated(config("qwen3_vl"))
    | mutated(doubled_config("qwen2_5_vl"))
    | mutated(newer_config("qwen2_5_vl"))
)
def test_settings_of_a_checkpoint_are_sizes_or_refused(changed):
    EXAMPLES["settings of Qwen-VL"] += 1
    try:
        arguments = backbone_arguments(changed)
    except ValueError as error:
        assert "config.json" in str(error)
        return
    whole = [v for v in arguments.values() if isinstance(v, int) and v is not False]
    assert len(whole) >= 14 and all(type(v) is int or v is True for v in whole)
    assert all(value > 0 for value in whole)
    if arguments["num_layers"] + arguments["vision_num_layers"] < 100:
        shapes = tensor_shapes(arguments)
        assert all(size > 0 for shape in shapes.values() for size in shape)


def test_the_undamaged_settings_are_accepted():
    """Without this, all damage could be refused for another reason."""
    for family in FAMILIES:
        forms = config(family), doubled_config(family), newer_config(family)
        found = [backbone_arguments(json.loads(json.dumps(one))) for one in forms]
        assert found[0] == found[1] == found[2]
