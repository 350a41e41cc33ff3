"""Settings of MobileVLM and LLaVA checkpoints: each is checked before a model is made.

They were believed: a vocabulary of 2e9 tried to allocate 384 GB, 100,000 layers built
for ever, NaN and negative numbers loaded, and wrong types ended in AttributeError.
"""

import json
import math
import time

import pytest
from checkpoint_folders import llava_folder, outer, text, vision
from mobilevlm_golden import SIZES
from test_mobilevlm_checkpoints import CLIP, LLAMA, ORIGINAL, PORT

from keras_betakd.mobilevlm import MobileVLMBackbone, load_mobilevlm
from keras_betakd.mobilevlm.configurations import backbone_arguments
from keras_betakd.mobilevlm.names import targets
from keras_betakd.mobilevlm.shapes import tensor_shapes
from keras_betakd.models import load_model

HUGE = 2 * 10**9


@pytest.mark.parametrize("kind", ["ldpnetv2", "mlp2x_gelu", "mlp3x_gelu", "linear"])
def test_the_shapes_of_a_configuration_are_those_of_its_model(kind):
    backbone = MobileVLMBackbone(**{**SIZES, "image_size": 60}, projector_type=kind)
    expected = {name: target.shape for name, target in targets(backbone).items()}
    assert tensor_shapes(backbone.get_config()) == expected


@pytest.mark.parametrize(
    "change, message",
    [
        (text(vocab_size=HUGE), r"\(97, 48\) instead of \(2000000000, 48\)"),
        (text(vocab_size=10**400), r"\(97, 48\) instead of \(1000"),
        (text(num_hidden_layers=10**5), "describes 100000 layers"),
        (vision(num_hidden_layers=HUGE), "describes 2000000000 layers"),
        (text(intermediate_size=HUGE), r"instead of \(2000000000, 48\)"),
        (vision(image_size=HUGE), "position_embedding.weight"),
        (vision(intermediate_size=HUGE), "mlp.fc1.weight"),
        (text(num_key_value_heads=4), r"k_proj.weight: \(24, 48\) instead"),
    ],
)
def test_sizes_are_compared_with_the_tensors_first(change, message, tmp_path):
    folder = llava_folder(tmp_path / "a", change)
    start = time.monotonic()
    with pytest.raises(ValueError, match=message) as caught:
        load_mobilevlm(folder)
    assert str(folder) in str(caught.value)
    assert time.monotonic() - start < 5  # building takes minutes, or all memory


@pytest.mark.parametrize(
    "change, key",
    [
        *(
            (text(**{key: value}), key)
            for key in LLAMA
            for value in (0, -1, math.nan, math.inf, True, "2", [2], {"a": 1})
        ),
        *(
            (vision(**{key: value}), key)
            for key in CLIP
            for value in (0, -1, 1.5, math.nan, False, "2", None)
        ),
        (text(rms_norm_eps=None), "rms_norm_eps"),
        (text(rms_norm_eps=1e30), "rms_norm_eps"),
        (text(rope_theta=-1), "rope_theta"),
        (text(rope_theta=0), "rope_theta"),
        (text(rope_theta=math.nan), "rope_theta"),
        (text(rope_theta="10000"), "rope_theta"),
        (text(rope_parameters=[]), "rope_parameters"),
        (text(rope_parameters={"rope_type": "yarn"}), "rope_type"),
        (text(rope_parameters={"rope_theta": -5.0}), "rope_theta"),
        (text(num_attention_heads=5), "num_attention_heads"),
        (text(num_attention_heads=48), "num_attention_heads"),
        (text(num_key_value_heads=3), "num_key_value_heads"),
        (text(head_dim=5), "head_dim"),
        (text(hidden_act="gelu"), "hidden_act"),
        (text(tie_word_embeddings=0), "tie_word_embeddings"),
        (text(rope_scaling=0), "rope_scaling"),
        (vision(num_attention_heads=5), "num_attention_heads"),
        (vision(patch_size=57), "patch_size"),
        (vision(hidden_act="gelu"), "hidden_act"),
        (vision(layer_norm_eps=1e-3), "layer_norm_eps"),
        (outer(vision_feature_layer=[-2, -3]), "vision_feature_layer"),
        (outer(vision_feature_layer=4), "vision_feature_layer"),
        (outer(vision_feature_layer=-1.0), "vision_feature_layer"),
        (outer(projector_hidden_act=5), "projector_hidden_act"),
        (outer(projector_hidden_act="relu"), "projector_type"),
        (outer(text_config=None), "text_config"),
        (outer(text_config=[]), "text_config"),
        (outer(vision_config="clip"), "vision_config"),
    ],
)
def test_wrong_settings_are_refused_by_file_and_name(change, key):
    config = json.loads(json.dumps(PORT))
    change(config)
    with pytest.raises(ValueError, match=key) as caught:
        backbone_arguments(config, source="'a/config.json'")
    assert "'a/config.json'" in str(caught.value)


@pytest.mark.parametrize(
    "wrong, key",
    [
        ({"mm_projector_type": 5}, "mm_projector_type"),
        ({"mm_projector_type": "mlp99999x_gelu"}, "projector_type"),
        ({"mm_vision_tower": 5}, "mm_vision_tower"),
        ({"mm_vision_tower": "a\0b"}, "mm_vision_tower"),
        ({"mm_use_im_start_end": 0}, "mm_use_im_start_end"),
        ({"mm_vision_select_layer": "-2"}, "mm_vision_select_layer"),
    ],
)
def test_wrong_settings_of_the_original_layout(wrong, key):
    with pytest.raises(ValueError, match=key):
        backbone_arguments({**ORIGINAL, **wrong})


def test_the_base_of_rotary_positions_is_read_where_newer_files_have_it():
    """It was ignored there, and 10000 taken."""
    newer = {"rope_type": "default", "rope_theta": 5000.0}
    config = {**PORT, "text_config": {**LLAMA, "rope_parameters": newer}}
    assert backbone_arguments(config)["rope_max_wavelength"] == 5000.0


@pytest.mark.parametrize("load", [load_mobilevlm, load_model])
@pytest.mark.parametrize(
    "content", ["[]", "null", "5", "", '{"a"', "[" * 10**6, '{"a": 1, "a": 2}', "\xff"]
)
def test_a_config_that_is_no_json_object(content, load, tmp_path):
    folder = llava_folder(tmp_path / "a")
    (folder / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match="config.json"):
        load(str(folder))


@pytest.mark.parametrize("value", [5, "fill", ["pad"], {"a": 1}])
def test_an_unknown_way_to_make_images_square(value, tmp_path):
    """Any word but "pad" was taken for cropping, in silence."""
    folder = llava_folder(tmp_path / "a", outer(image_aspect_ratio=value))
    with pytest.raises(ValueError, match="image_aspect_ratio"):
        load_mobilevlm(folder)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"image_mean": [0.5, 0.5, 0.5]}, "image_mean"),
        ({"image_std": 5}, "image_std"),
        ({"size": {"shortest_edge": 336}}, "size"),
        ({"crop_size": "56"}, "crop_size"),
        ([], "json object"),
    ],
)
def test_images_that_the_model_was_not_trained_on(content, message, tmp_path):
    """preprocessor_config.json was never read: other means changed every image."""
    folder = llava_folder(tmp_path / "a")
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"preprocessor_config.json.*{message}"):
        load_mobilevlm(folder)
    published = {
        "size": {"shortest_edge": 56},
        "crop_size": {"height": 56, "width": 56},
    }
    path.write_text(
        json.dumps({**published, "image_mean": [0.48145466, 0.4578275, 0.40821073]})
    )
    load_mobilevlm(folder)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x0a\xff\xff\xff\xff\x0f"])
def test_a_broken_tokenizer_is_named(content, tmp_path):
    folder = llava_folder(tmp_path / "a")
    (folder / "tokenizer.model").write_bytes(content)
    with pytest.raises(ValueError, match="tokenizer.model' cannot be read"):
        load_mobilevlm(folder)
