"""Presets that plain keras-hub loads, for every precision that the examples offer."""

import json
import os

import keras_hub
import numpy as np
import pytest
from keras import ops
from tiny_models import tiny_gemma3, tiny_gemma_text

from keras_betakd.models import save_preset

TOKENS = np.arange(2, 18)[None]


def logits(model):
    backbone = model.backbone
    inputs = {"token_ids": TOKENS, "padding_mask": np.ones_like(TOKENS)}
    if getattr(backbone, "vision_encoder", None) is not None:
        inputs |= {
            "images": np.full((1, 1, 16, 16, 3), 0.5, "float32"),
            "vision_indices": np.array([[3, 4, 5, 6]]),
            "vision_mask": np.isin(np.arange(16), [3, 4, 5, 6])[None],
        }
    hidden = backbone(inputs)
    return ops.convert_to_numpy(
        ops.cast(backbone.token_embedding(hidden, reverse=True), "float32")
    )


def contents(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() for path in files}


def load(folder, **kwargs):
    return keras_hub.models.CausalLM.from_preset(str(folder), **kwargs)


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float16", "mixed_bfloat16", "mixed_float16"]
)
def test_every_precision_loads(tmp_path, dtype):
    """keras-hub saves a mixed policy that it cannot load: Invalid dtype."""
    student = tiny_gemma3(dtype=dtype)
    save_preset(student, tmp_path / "student")
    loaded = load(tmp_path / "student")
    assert loaded.backbone.dtype_policy.name == "float32"
    for ours, theirs in zip(student.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(ops.cast(ours, "float32")),
            ops.convert_to_numpy(ops.cast(theirs, "float32")),
        )
    if dtype == "float32" or "mixed" in dtype:
        # All in float32, the vision tower too.
        reference = tiny_gemma3()
        reference.set_weights(student.get_weights())
        np.testing.assert_array_equal(logits(loaded), logits(reference))
    again = load(tmp_path / "student", dtype=dtype)
    assert again.backbone.dtype_policy.name == dtype


def test_a_text_model_computes_as_in_training_where_that_is_asked_for(tmp_path):
    student = tiny_gemma_text(dtype="mixed_bfloat16")
    save_preset(student, tmp_path / "student")
    again = load(tmp_path / "student", dtype="mixed_bfloat16")
    np.testing.assert_array_equal(logits(again), logits(student))


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_lora_is_merged(tmp_path, dtype):
    student = tiny_gemma_text(dtype=dtype)
    student.backbone.enable_lora(2)
    for weight in student.weights:
        if "lora_kernel_b" in weight.path:
            weight.assign(ops.full(weight.shape, 0.1))
    save_preset(student, tmp_path / "student")
    loaded = load(tmp_path / "student", dtype=dtype)
    assert not [w.path for w in loaded.weights if "lora" in w.path]
    tolerance = 1e-5 if dtype == "float32" else 0.1  # bfloat16: 3 digits of 4
    np.testing.assert_allclose(
        logits(loaded), logits(student), rtol=tolerance, atol=tolerance
    )


def test_a_quantised_model_loads_or_is_refused(tmp_path):
    """keras-hub writes an int8 vision tower that it then builds in float32."""
    text, vision = tiny_gemma_text(), tiny_gemma3()
    for model in text, vision:
        model.backbone.quantize("int8")
    save_preset(text, tmp_path / "text")
    np.testing.assert_array_equal(logits(load(tmp_path / "text")), logits(text))
    with pytest.raises(ValueError, match="cannot be saved as a preset"):
        save_preset(vision, tmp_path / "vision")
    packed = tiny_gemma_text()
    packed.backbone.quantize("int4")  # keras-hub would quantise its inputs, too
    with pytest.raises(ValueError, match="other layers or inputs"):
        save_preset(packed, tmp_path / "packed")
    assert os.listdir(tmp_path) == ["text"]


def test_an_older_preset_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    folder, model = tmp_path / "student", tiny_gemma_text()
    save_preset(model, folder)
    (folder / "model_00007.weights.h5").write_text("")
    before = contents(folder)
    broken = tiny_gemma3()
    broken.backbone.quantize("int8")
    with pytest.raises(ValueError, match="quantised"):
        save_preset(broken, folder)
    assert contents(folder) == before
    save_preset(tiny_gemma_text(width=16), folder)
    assert not (folder / "model_00007.weights.h5").exists()
    assert load(folder).backbone.hidden_dim == 16
    assert os.listdir(tmp_path) == ["student"]


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="other things than a preset.*thesis.tex"):
        save_preset(tiny_gemma_text(), tmp_path)
    assert json.dumps(os.listdir(tmp_path)) == '["thesis.tex"]'
