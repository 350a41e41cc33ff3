"""Digests of models, preprocessors, records and folders: all that numbers depend on."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from test_families import model_of

from keras_betakd import fingerprints
from keras_betakd.models.layers import sublayers

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def rebuilt(model, **changes):
    """A model with other settings of its backbone and the same weights."""
    config = model.backbone.get_config() | changes
    backbone = type(model.backbone).from_config(config)
    for new, old in zip(backbone.weights, model.backbone.weights, strict=True):
        new.assign(old)
    return type(model)(backbone=backbone, preprocessor=model.preprocessor)


def llama():
    return model_of("Llama", 1, width=16)


def layer_of(model, kind):
    return next(x for x in sublayers(model) if type(x).__name__ == kind)


def set_on(kind, **values):
    """A change of a layer's attributes, as code does that edits a model."""

    def change(model):
        for name, value in values.items():
            assert hasattr(layer_of(model, kind), name)
            setattr(layer_of(model, kind), name, value)
        return model

    return change


def with_lora(alpha):
    def change(model):
        model.backbone.enable_lora(2)
        for layer in sublayers(model):
            if getattr(layer, "lora_enabled", False):
                layer.lora_alpha = alpha
        return model

    return change


CHANGES = {
    "wavelength": ("Llama", lambda m: rebuilt(m, rope_max_wavelength=10)),
    "epsilon": ("Llama", lambda m: rebuilt(m, layer_norm_epsilon=0.5)),
    "precision": ("Llama", lambda m: rebuilt(m, dtype="mixed_bfloat16")),
    "epsilon of a layer": ("Llama", set_on("LlamaLayerNorm", epsilon=0.1)),
    "soft cap": ("Gemma3", set_on("CachedGemma3Attention", logit_soft_cap=5.0)),
    "window": ("Gemma3", set_on("CachedGemma3Attention", sliding_window_size=2)),
    "scale of RoPE": ("Gemma3", set_on("CachedGemma3Attention", rope_scaling_factor=8)),
    "scale of vision": ("Gemma3", set_on("Gemma3VisionAttention", scale=0.1)),
    "LoRA": ("Llama", with_lora(2)),
}


@pytest.mark.parametrize("case", CHANGES)
def test_another_model_of_the_same_weights_has_another_digest(case):
    """A cache was gone on with by such a teacher, and so made of two teachers."""
    name, change = CHANGES[case]
    model = model_of(name, 1, width=16)
    before = fingerprints.of_architecture(model)
    assert fingerprints.of_architecture(change(model)) != before


def test_the_scale_of_lora_counts():
    found = {fingerprints.of_architecture(with_lora(a)(llama())) for a in (2, 4, 4.0)}
    assert len(found) == 2


@pytest.mark.backends
def test_what_inference_does_not_depend_on_does_not_count():
    """A teacher that is frozen, compiled or was used is the same teacher."""
    model = llama()
    before = fingerprints.of_model(model)
    preprocessor = fingerprints.of_preprocessor(model.preprocessor)
    model.trainable = False
    model.compile(sampler="greedy")
    model.generate("what color", max_length=12)
    assert fingerprints.of_model(model) == before
    assert fingerprints.of_preprocessor(model.preprocessor) == preprocessor
    keras.layers.Dense(2)  # so that Keras gives other numbers to names
    assert fingerprints.of_model(llama()) == before
    weight = model.weights[-1]
    weight.assign(weight + 1e-3)
    assert fingerprints.of_model(model) != before


def test_another_process_finds_the_same_digests():
    code = (
        "import sys; sys.path.insert(0, 'tests'); from test_families import model_of; "
        "from keras_betakd import fingerprints as f; m = model_of('Gemma3', 1); "
        "print('found', f.of_model(m), f.of_preprocessor(m.preprocessor))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    model = model_of("Gemma3", 1)
    digests = (
        fingerprints.of_model(model),
        fingerprints.of_preprocessor(model.preprocessor),
    )
    assert "found " + " ".join(digests) in result.stdout, result.stderr


PREPROCESSOR_CHANGES = {
    "length": lambda p: setattr(p, "sequence_length", 64),
    "start token": lambda p: setattr(p, "add_start_token", False),
    "image size": lambda p: setattr(p.image_converter, "image_size", (8, 8)),
    "scale": lambda p: setattr(p.image_converter, "scale", 0.5),
    "resizing": lambda p: setattr(p.image_converter, "interpolation", "nearest"),
    "tokens of an image": lambda p: setattr(p, "num_vision_tokens_per_image", 1),
    "scores": lambda p: setattr(p.tokenizer, "proto", p.tokenizer.proto + b"\0"),
}


@pytest.mark.parametrize("case", PREPROCESSOR_CHANGES)
def test_settings_of_a_preprocessor_count(case):
    preprocessor = model_of("Gemma3", 1).preprocessor
    before = fingerprints.of_preprocessor(preprocessor)
    assert fingerprints.of_preprocessor(preprocessor) == before
    PREPROCESSOR_CHANGES[case](preprocessor)
    assert fingerprints.of_preprocessor(preprocessor) != before


def test_records_count_with_their_images():
    def digest(pixel=0, prompt="a", response="b"):
        image = np.full((2, 2, 3), pixel, "uint8")
        rows = {"prompts": [prompt], "responses": [response], "images": [[image]]}
        return fingerprints.of_records(rows)[0]

    found = {digest(), digest(1), digest(prompt="c"), digest(response="c")}
    assert len(found) == 4 and digest() in found


def test_files_count_by_their_bytes_not_by_size_and_date(tmp_path):
    path = tmp_path / "assets" / "weights"
    path.parent.mkdir()
    path.write_bytes(b"0123")
    status = path.stat()
    before = fingerprints.of_folder(tmp_path)
    assert list(before) == ["assets/weights"]
    path.write_bytes(b"0124")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert fingerprints.of_folder(tmp_path) != before
    (tmp_path / "assets" / "loop").symlink_to(tmp_path)
    assert list(fingerprints.of_folder(tmp_path)) == ["assets/weights"]


def test_answers_by_their_tokens_are_told_apart():
    """All of them have the same word in the place of their text."""
    rows = {"prompts": ["what?"] * 3, "responses": ["red", None, None]}
    rows["response_tokens"] = [None, [4, 1], [5, 1]]
    digests = fingerprints.of_records(rows)
    assert len({*digests}) == 3
    alone = {"prompts": ["what?"], "responses": ["red"]}
    assert fingerprints.of_records(alone) == digests[:1]
