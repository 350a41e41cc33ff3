"""MobileVLM V2 and LLaVA-1.5 against numbers of their PyTorch originals."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops
from marks import kept
from mobilevlm_golden import KINDS, SIZES, batch, golden, golden_model
from test_families import moved_since, snapshot
from tiny_families import tiny_mobilevlm
from tiny_models import random_image

from keras_betakd.mobilevlm import LDPv2Projector, MobileVLMBackbone, MobileVLMCausalLM
from keras_betakd.models import load_model

TOLERANCE = 2e-5


def close(got, expected, **kwargs):
    got = ops.convert_to_numpy(got)
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE, **kwargs)


@pytest.mark.backends
@pytest.mark.parametrize("kind", kept(KINDS, "mobilevlm"))
def test_image_features(kind):
    backbone = golden_model(kind).backbone
    selected = backbone.vision_tower(golden()["in/pixels"].transpose(0, 2, 3, 1))
    close(selected, golden()["vision/selected"])
    close(backbone.projector(selected), golden()[f"{kind}/image_features"])


@pytest.mark.backends
@pytest.mark.parametrize("case", kept(["A", "B"], "B"))
@pytest.mark.parametrize("kind", kept(KINDS, "mobilevlm"))
def test_hidden_states_and_logits(kind, case):
    """Batch B is padded, and one of its records has no image."""
    model = golden_model(kind)
    inputs = batch(case, model.backbone.num_image_tokens)
    kept = inputs["padding_mask"]
    for network, name in (
        (model.backbone, "hidden_states_2"),
        (model, "logits"),
    ):
        got = ops.convert_to_numpy(network(inputs))
        close(got[kept], golden()[f"{kind}/{case}/{name}"][kept])


@pytest.mark.parametrize("kind", KINDS)
def test_text_alone(kind):
    """In a batch without any image, the image inputs are unused placeholders."""
    model = golden_model(kind)
    inputs = {k: v[1:2] for k, v in batch("B", model.backbone.num_image_tokens).items()}
    assert not (inputs["token_ids"] < 0).any()
    kept = inputs["padding_mask"]
    for images in (inputs["images"], np.zeros_like(inputs["images"])):
        got = ops.convert_to_numpy(model({**inputs, "images": images}))
        close(got[kept], golden()[f"{kind}/B/logits"][1:2][kept])


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_answers_with_cache(kind):
    model = golden_model(kind)
    model.compile(sampler="greedy")
    inputs = batch("A", model.backbone.num_image_tokens, room=8)
    outputs = model.generate(inputs, stop_token_ids=None)["token_ids"]
    for i in range(2):
        expected = golden()[f"{kind}/gen_{i}"][0, -8:]
        np.testing.assert_array_equal(outputs[i, -8:], expected)


@pytest.mark.backends
@pytest.mark.parametrize("tag", [k[:-3] for k in golden() if k.endswith("/in")])
def test_projector_with_every_grid(tag):
    weights = {k.split("/")[-1]: v for k, v in golden().items() if f"{tag}/w/" in k}
    inputs, expected = golden()[f"{tag}/in"], golden()[f"{tag}/out"]
    projector = LDPv2Projector(expected.shape[-1], int(expected.shape[-2] ** 0.5))
    projector.build(inputs.shape)
    for layer, name in (
        (projector.dense_1, "mlp.mlp.0"),
        (projector.dense_2, "mlp.mlp.2"),
    ):
        layer.kernel.assign(weights[f"{name}.weight"].T)
        layer.bias.assign(weights[f"{name}.bias"])
    depthwise = projector.depthwise
    depthwise.kernel.assign(weights["peg.peg.0.weight"].transpose(2, 3, 0, 1))
    depthwise.bias.assign(weights["peg.peg.0.bias"])
    close(projector(inputs), expected)


# Of the language model, the projector and the tower, as the released models have them.
RELEASED = {
    "MobileVLM V2 1.7B": ((2048, 24, 16, 5632), "ldpnetv2", 1_674_121_216),
    "MobileVLM V2 7B": ((4096, 32, 32, 11008), "ldpnetv2", 7_062_943_744),
    "LLaVA-1.5 7B": ((4096, 32, 32, 11008), "mlp2x_gelu", 7_062_902_784),
}


def test_parameters_of_the_released_sizes():
    """Counts parameters without creating weights, in a process of its own."""
    code = f"""
import math, keras
from keras_betakd.mobilevlm import MobileVLMBackbone
for (width, layers, heads, inner), projector, count in {list(RELEASED.values())}:
    with keras.StatelessScope(initialize_variables=False):
        backbone = MobileVLMBackbone(
            vocabulary_size=32000, hidden_dim=width, num_layers=layers,
            num_query_heads=heads, num_key_value_heads=heads, intermediate_dim=inner,
            projector_type=projector,
        )
    sizes = [math.prod(v.shape) for v in backbone.weights]
    tower = [math.prod(v.shape) for v in backbone.vision_tower.weights]
    positions = 577  # position_ids, which are no parameters
    assert sum(sizes) - positions == count, (sum(sizes), count)
    assert sum(tower) - positions == 303_507_456
    assert backbone.num_image_tokens == (144 if projector == "ldpnetv2" else 576)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]


def test_blocks_after_the_features_are_not_run():
    """Every checkpoint has the last block's weights; they must change nothing."""
    model = golden_model("llava")
    inputs = batch("A", 16)
    before = ops.convert_to_numpy(model(inputs))
    block = model.backbone.vision_tower.encoder.encoder_layers[-1]
    for weight in block.weights:
        weight.assign(np.full(weight.shape, np.nan))
    np.testing.assert_array_equal(ops.convert_to_numpy(model(inputs)), before)


def test_lora_leaves_the_tower_alone():
    """CLIP's attention has layers of the same names as Llama's."""
    backbone = tiny_mobilevlm().backbone
    backbone.enable_lora(2)
    paths = [w.path for w in backbone.trainable_weights if "lora" in w.path]
    assert paths and all(path.startswith("transformer_layer_") for path in paths)


def test_fit_of_raw_records_as_any_model_of_keras_hub():
    model = tiny_mobilevlm(max_images=1)
    model.compile(optimizer=keras.optimizers.Adam(3e-2))
    before = snapshot(model)
    records = {
        "images": np.stack([random_image(0), random_image(1)]),
        "prompts": ["<image>\nwhat color", "<image>\nwhat shape"],
        "responses": ["red", "a circle"],
    }
    history = model.fit(records, batch_size=2, epochs=8, verbose=0).history
    assert history["loss"][-1] < 0.9 * history["loss"][0]
    moved = moved_since(before, model).values()
    assert any(path.startswith("projector") for path in moved)
    assert not any(path.startswith("encoder") for path in moved)


def test_a_single_prompt_gives_a_single_answer():
    model = tiny_mobilevlm()
    model.compile(sampler="greedy")
    single = {"prompts": "<image>\nwhat", "images": random_image(0)}
    answer = model.generate(single, max_length=110, strip_prompt=True)
    several = {key: [value] * 2 for key, value in single.items()}
    assert model.generate(several, max_length=110, strip_prompt=True) == [answer] * 2


def test_a_preset_loads_in_another_precision(tmp_path):
    """This includes the tower, which is not among the functional model's layers."""
    model = tiny_mobilevlm()
    model.save_to_preset(tmp_path / "preset")
    loaded = load_model(tmp_path / "preset", dtype="bfloat16")
    assert isinstance(loaded, MobileVLMCausalLM)
    floats = [w for w in loaded.weights if "position_ids" not in w.path]
    assert {str(w.dtype) for w in floats} == {"bfloat16"}
    assert loaded.backbone.vision_tower.encoder.compute_dtype == "bfloat16"
    assert loaded.backbone.get_config() == {
        **model.backbone.get_config(),
        "dtype": loaded.backbone.get_config()["dtype"],
    }


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"projector_type": "ldpnet"}, "'ldpnetv2' .*Received: .*'ldpnet'"),
        ({"vision_feature_layer": 4}, "one of the 4 hidden states of 3 blocks"),
        ({"patch_size": 28, "image_size": 84, "projector_type": "mlp0x_gelu"}, "k = 2"),
    ],
)
def test_settings_of_no_known_model_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        MobileVLMBackbone(**{**SIZES, **wrong})
