"""Damaged checkpoints and presets end in the documented errors, or load and work.

See `test_fuzz_energies.py` for the command of a long run.
"""

import json
import pathlib
import shutil

import numpy as np
import pytest
from checkpoint_folders import llava_folder
from fuzz_cases import EXAMPLES
from hypothesis import given, settings
from hypothesis import strategies as st
from json_mutations import mutated
from keras import ops
from mobilevlm_golden import batch
from test_mobilevlm_checkpoints import CLIP, ORIGINAL, PORT
from tiny_models import tiny_gemma_text

from keras_betakd.mobilevlm import load_mobilevlm
from keras_betakd.mobilevlm.configurations import backbone_arguments
from keras_betakd.mobilevlm.names import targets
from keras_betakd.mobilevlm.shapes import tensor_shapes
from keras_betakd.models import load_model
from keras_betakd.vision_language.tensor_files import TensorFiles

# FileNotFoundError is an OSError; both are documented, as is ValueError.
DOCUMENTED = (ValueError, OSError)
_EXAMPLES = settings.default.max_examples
many = settings(max_examples=50 * _EXAMPLES)  # milliseconds each
some = settings(max_examples=4 * _EXAMPLES)  # a model is made for those that load
FULL = {
    **PORT,
    "text_config": {**PORT["text_config"], "rope_theta": 1e4, "head_dim": 12},
    "vision_config": {**CLIP, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    "model_type": "llava",
    "image_aspect_ratio": "pad",
    "vision_feature_layer": -2,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "llava"
    llava_folder(folder, lambda config: config.update(FULL), shards=2)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.48145466, 0.4578275, 0.40821073], "size": 56})
    )
    return folder


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "gemma"
    tiny_gemma_text().save_to_preset(str(folder))
    return folder


def damaged(folder, name, content):
    """A copy of a folder with other bytes in one file; the others are links."""
    copy = folder.with_name(f"{folder.name}_damaged")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    (copy / name).write_bytes(content)
    return copy


def loads(load, folder, name, inputs):
    """Loads a folder with one damaged file; whether it did, with finite outputs."""
    EXAMPLES[f"damaged {name}"] += 1
    try:
        model = load(str(folder))
    except DOCUMENTED as error:
        assert folder.name in str(error), "the message names no file"
        return False
    outputs = ops.convert_to_numpy(model.backbone(inputs))
    assert np.isfinite(outputs[inputs["padding_mask"] != 0]).all()
    return True


@many
@given(config=mutated(FULL) | mutated(ORIGINAL))
def test_settings_of_a_checkpoint_are_sizes_or_refused(config):
    EXAMPLES["settings"] += 1
    try:
        arguments = backbone_arguments(config)
    except DOCUMENTED:
        return
    whole = [value for key, value in arguments.items() if "feature" not in key]
    whole = [value for value in whole if isinstance(value, int)]
    assert len(whole) >= 11 and all(type(v) is int and v > 0 for v in whole)
    if arguments["num_layers"] + arguments["vision_num_layers"] < 100:
        shapes = tensor_shapes(arguments)
        assert all(size > 0 for shape in shapes.values() for size in shape)


@some
@given(config=mutated(FULL))
def test_checkpoints_with_a_damaged_config(config, checkpoint):
    folder = damaged(checkpoint, "config.json", json.dumps(config).encode())
    loads(load_mobilevlm, folder, "config.json", batch("B", 16))


@some
@given(data=st.data())
def test_checkpoints_with_other_damaged_files(data, checkpoint):
    name = data.draw(
        st.sampled_from(["model.safetensors.index.json", "preprocessor_config.json"])
    )
    value = data.draw(mutated(json.loads((checkpoint / name).read_text())))
    folder = damaged(checkpoint, name, json.dumps(value).encode())
    loads(load_mobilevlm, folder, name, batch("B", 16))


@st.composite
def damaged_bytes(draw, content, within):
    """Bytes with some of the first `within` changed, or the end cut off or grown."""
    content = bytearray(content)
    for _ in range(draw(st.integers(0, 3))):
        content[draw(st.integers(0, within - 1))] = draw(st.integers(0, 255))
    cut = draw(st.sampled_from([0, 0, 0, 1, 100]) | st.integers(0, len(content)))
    return bytes(content[: len(content) - cut]) + bytes(
        draw(st.sampled_from([0, 0, 8]))
    )


@many
@given(data=st.data())
def test_files_of_tensors_with_damaged_headers(data, checkpoint):
    EXAMPLES["headers"] += 1
    path = next(iter(sorted(checkpoint.glob("*.safetensors"))))
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    if data.draw(st.booleans()):
        header = json.loads(content[8 : 8 + size])
        header = json.dumps(data.draw(mutated(header))).encode("utf-8", "surrogatepass")
        content = len(header).to_bytes(8, "little") + header + content[8 + size :]
    else:
        content = data.draw(damaged_bytes(content, 8 + size))
    folder = checkpoint.with_name("headers")
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(content)
    try:
        files = TensorFiles(folder)
        read = dict(files.read(set(files.shapes)))
    except DOCUMENTED as error:
        assert "model.safetensors" in str(error)
    else:
        assert {name: array.shape for name, array in read.items()} == files.shapes


@some
@given(data=st.data())
def test_damaged_bin_files(data, checkpoint, bin_file):
    EXAMPLES["bin"] += 1
    folder = checkpoint.with_name("bin")
    folder.mkdir(exist_ok=True)
    content = bin_file.read_bytes()
    content = data.draw(damaged_bytes(content, len(content)))
    (folder / "pytorch_model.bin").write_bytes(content)
    try:
        files = TensorFiles(folder)
        read = dict(files.read(set(files.shapes)))
    except DOCUMENTED as error:
        assert "pytorch_model.bin" in str(error)
    else:
        assert {name: array.shape for name, array in read.items()} == files.shapes


@pytest.fixture(scope="module")
def bin_file(tmp_path_factory):
    import torch

    path = tmp_path_factory.mktemp("bin") / "pytorch_model.bin"
    torch.save({"a": torch.ones(3, 2), "b": torch.ones(4)}, path)
    return path


TEXT = {
    "token_ids": np.ones((1, 4), "int32"),
    "padding_mask": np.ones((1, 4), "int32"),
}
PRESET_FILES = ["config.json", "task.json", "preprocessor.json", "tokenizer.json"]


@some
@given(data=st.data())
def test_presets_with_damaged_files(data, preset):
    name = data.draw(st.sampled_from(PRESET_FILES))
    value = data.draw(mutated(json.loads((preset / name).read_text())))
    folder = damaged(preset, name, json.dumps(value).encode())
    loads(load_model, folder, name, TEXT)


@some
@given(data=st.data())
def test_presets_with_damaged_weights(data, preset):
    name = "model.weights.h5"
    content = (preset / name).read_bytes()
    content = data.draw(damaged_bytes(content, len(content)))
    loads(load_model, damaged(preset, name, content), name, TEXT)


def test_the_undamaged_folders_load(checkpoint, preset):
    """Without this, all damage could be refused for another reason."""
    assert loads(load_mobilevlm, checkpoint, "nothing", batch("B", 16))
    assert loads(load_model, preset, "nothing", TEXT)
    model = load_mobilevlm(checkpoint)
    assert set(targets(model.backbone)) == set(tensor_shapes(backbone_arguments(FULL)))
    assert pathlib.Path(preset / "task.json").exists()
