"""Inputs of Qwen's models with vision that once failed late, or in silence."""

import shutil

import keras
import numpy as np
import pytest
from qwen_vl_golden import checkpoint, golden_model
from test_families import model_of
from tiny_models import random_image

from keras_betakd import BetaKDDistiller, ForwardKLEnergy, TaskBeta
from keras_betakd.models import load_model, save_preset
from keras_betakd.qwen_vl import load_qwen_vl

TEXT = {"prompts": ["is ice cold?", "and fire?"], "responses": ["yes", "no"]}


@pytest.mark.backends
@pytest.mark.one_of_two("tensorflow")
def test_a_first_batch_without_images_or_with_one_token(tmp_path):
    """Keras builds a model with ones for all numbers: there was one token alone."""
    for images in ([[], []], [[random_image(0, 8, 8)], []]):
        rows = {**TEXT, "images": images}
        rows["prompts"] = ["<image>" * len(i) + "what?" for i in images]
        teacher, student = model_of("Qwen3VL", 1, width=16), model_of("Qwen3VL", 0)
        distiller = BetaKDDistiller(teacher, student, ForwardKLEnergy(), TaskBeta())
        distiller.compile(optimizer=keras.optimizers.SGD(0.1))
        history = distiller.fit(rows, batch_size=2, verbose=0).history
        assert np.isfinite(history["loss"]).all()


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_model_that_has_not_run_is_quantised(family):
    """A layer without weights was not built, and Keras quantises built ones alone."""
    model = golden_model(family)
    model.backbone.quantize("int8")
    layer = model.backbone.transformer_layers[0].self_attention.query
    assert layer.quantization_mode == "int8"


def test_a_sequence_that_is_too_short_for_one_call_is_refused():
    """It was cut within an image, and an image token was trained."""
    preprocessor = golden_model("qwen2_5_vl", sequence_length=200).preprocessor
    rows = {
        "prompts": ["<image>What?"],
        "responses": ["cat"],
        "images": [[random_image(0, 40, 56)]],
    }
    preprocessor(rows, sequence_length=150)
    with pytest.raises(ValueError, match="needs a sequence_length of"):
        preprocessor(rows, sequence_length=60)


def test_arguments_of_checkpoints_are_refused_for_presets(tmp_path):
    """keras-hub takes any argument for a preset, and used none of them."""
    save_preset(golden_model("qwen3_vl"), tmp_path / "preset")
    loaded = load_model(tmp_path / "preset")
    assert loaded.preprocessor.image_converter.max_pixels == 4096
    with pytest.raises(ValueError, match="max_pixels can be given where a published"):
        load_model(tmp_path / "preset", max_pixels=1024)


def test_an_adapter_beside_the_weights_is_refused(tmp_path):
    """The model was loaded without it, as if it had not been trained."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint("qwen2_vl"), folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds an adapter.*Merge it"):
        load_qwen_vl(folder)


def test_arguments_that_no_prompt_can_have_are_refused_at_once():
    for name, value in (("sequence_length", 0), ("prompt_template", "nonsense")):
        with pytest.raises(ValueError, match="sequence_length=0|no prompt template"):
            golden_model("qwen2_vl", **{name: value})


def test_videos_and_misspelt_keys_are_refused_by_name():
    model = golden_model("qwen2_vl")
    with pytest.raises(ValueError, match="no model here reads videos"):
        model.preprocessor({**TEXT, "videos": [[], []]})
    with pytest.raises(ValueError, match="did you mean 'prompts'"):
        model.generate({"prompt": "is ice cold?"})
