"""Files of tensors: where they are, what they hold, and whether they agree."""

import json
import os
import shutil
import struct

import numpy as np
import pytest
import torch
from checkpoint_folders import llava_folder
from mobilevlm_golden import tensors
from test_mobilevlm_checkpoints import PORT_NAMES, renamed, write

from keras_betakd.mobilevlm import load_mobilevlm
from keras_betakd.vision_language.tensor_files import TensorFiles

HEAD = "language_model.lm_head.weight"
INDEX = "model.safetensors.index.json"


def head(value, dtype="float32"):
    weights = renamed(tensors("llava"), PORT_NAMES[0])[HEAD].astype(dtype)
    weights[3, 5] = value
    return {HEAD: weights}


@pytest.mark.backends
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_tensor_with_a_number_that_is_none_is_named(value, kind, tmp_path):
    """Such checkpoints loaded, and every answer was of NaN."""
    folder = llava_folder(tmp_path / "a", weights=head(value), kind=kind)
    with pytest.raises(ValueError, match=f"'{HEAD}' in '.*/a/.*' holds NaN or inf"):
        load_mobilevlm(folder)


@pytest.mark.backends
def test_numbers_that_a_precision_cannot_hold(tmp_path):
    folder = llava_folder(tmp_path / "a", weights=head(1e6))
    with pytest.raises(ValueError, match=f"'{HEAD}'.* infinite in float16"):
        load_mobilevlm(folder, dtype="float16")
    load_mobilevlm(folder, dtype="bfloat16")


def test_whole_numbers_are_no_weights(tmp_path):
    """Eight-bit weights without their scales were taken as they are."""
    weights = renamed(tensors("llava"), PORT_NAMES[0])
    folder = write(tmp_path / "a", weights, {}, shards=1, dtype="int8")
    llava_folder(tmp_path / "b")
    shutil.copy(tmp_path / "b" / "config.json", folder / "config.json")
    with pytest.raises(
        ValueError, match=r"of another type:(.|\n)* lm_head.weight: I8 instead"
    ):
        load_mobilevlm(folder)


def test_a_tensor_in_two_files(tmp_path):
    """The later file won, in silence."""
    folder = llava_folder(tmp_path / "a")
    shutil.copy(folder / "model.safetensors", folder / "model-old.safetensors")
    with pytest.raises(ValueError, match="are in two files.*model-old.*mixes two"):
        load_mobilevlm(folder)


def test_a_tensor_under_two_names(tmp_path):
    twice = {"lm_head.weight": renamed(tensors("llava"), PORT_NAMES[0])[HEAD]}
    with pytest.raises(ValueError, match="one tensor under two names"):
        load_mobilevlm(llava_folder(tmp_path / "a", weights=twice))


def index_of(folder):
    return json.loads((folder / INDEX).read_text())["weight_map"]


def outside(tmp_path):
    """A checkpoint whose files of weights have moved to a folder beside it."""
    folder = llava_folder(tmp_path / "a", shards=2)
    (tmp_path / "outside").mkdir()
    for name in set(index_of(folder).values()):
        shutil.move(folder / name, tmp_path / "outside" / name)
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "../outside/{}",
        "{here}/outside/{}",
        "sub/{}",
        "..\\{}",
        "",
        ".",
        5,
        None,
        ["{}"],
    ],
)
def test_an_index_names_plain_files_of_its_folder(name, tmp_path):
    """Files anywhere were read, and numbers ended in TypeError."""
    folder = outside(tmp_path)
    wrong = {
        key: name.format(file, here=tmp_path) if isinstance(name, str) else name
        for key, file in index_of(folder).items()
    }
    (folder / INDEX).write_text(json.dumps({"weight_map": wrong}))
    with pytest.raises(ValueError, match="names no file of weights in its own folder"):
        load_mobilevlm(folder)


def test_a_link_that_leads_outside(tmp_path):
    folder = outside(tmp_path)
    for name in set(index_of(folder).values()):
        os.symlink(tmp_path / "outside" / name, folder / name)
    with pytest.raises(ValueError, match="a link that leads out of the folder"):
        load_mobilevlm(folder)


def test_a_snapshot_of_the_cache_of_hugging_face(tmp_path):
    """Its files are links to blobs, which is no harm."""
    snapshot = tmp_path / "models--llava" / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    llava_folder(snapshot, shards=2)
    blobs = tmp_path / "models--llava" / "blobs"
    blobs.mkdir()
    for i, path in enumerate(sorted(snapshot.iterdir())):
        shutil.move(path, blobs / str(i))
        os.symlink(f"../../blobs/{i}", path)
    load_mobilevlm(snapshot)


@pytest.mark.parametrize("weight_map", [5, [], {}, None, "model.safetensors"])
def test_an_index_without_a_map(weight_map, tmp_path):
    folder = llava_folder(tmp_path / "a", shards=2)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match="The index .* is damaged"):
        load_mobilevlm(folder)


def test_an_index_that_does_not_agree_with_its_files(tmp_path):
    folder = llava_folder(tmp_path / "a", shards=2)
    found = index_of(folder)
    first, second = sorted(set(found.values()))
    del found[HEAD]
    moved = next(name for name, file in found.items() if file == first)
    found |= {moved: second, "no.such.weight": first}
    (folder / INDEX).write_text(json.dumps({"weight_map": found}))
    with pytest.raises(ValueError, match="do not agree on 3 tensors") as caught:
        load_mobilevlm(folder)
    message = str(caught.value)
    assert f"{moved}: in {first}, by the index in {second}" in message
    assert f"no.such.weight: in no file, by the index in {first}" in message
    assert f"{HEAD}: in " in message and "by the index in no file" in message


def safetensors_file(path, header, size=16):
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(content)) + content + bytes(size))


ONE = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    "header, size",
    [
        ({"a": {**ONE, "shape": [2**40, 2]}}, 16),
        ({"a": {**ONE, "shape": [-2, -2]}}, 16),
        ({"a": {**ONE, "data_offsets": [0, 8]}}, 16),
        ({"a": ONE, "b": ONE}, 16),
        ({"a": ONE}, 8),
        ({"a": ONE}, 24),
        (b'{"a": %s, "a": %s}' % ((json.dumps(ONE).encode(),) * 2), 16),
        (b"[" * 10**5, 16),
        (b"null", 16),
    ],
)
def test_headers_that_do_not_fit_the_file(header, size, tmp_path):
    safetensors_file(tmp_path / "model.safetensors", header, size)
    with pytest.raises(ValueError, match="model.safetensors' cannot be read"):
        TensorFiles(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        torch.zeros(3),
        [torch.zeros(3)],
        {"a": 5},
        {5: torch.zeros(3)},
        {"a": torch.zeros(1).expand(10**9, 48)},  # 4 bytes that claim 192 GB
        {"a": torch.zeros(3).to_sparse()},
        {"a": torch.empty(3, device="meta")},
    ],
)
def test_a_bin_that_holds_no_plain_tensors(content, tmp_path):
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pytorch_model.bin' cannot be read"):
        TensorFiles(tmp_path)


def test_a_bin_is_not_read_with_an_unsafe_torch(tmp_path, monkeypatch):
    """Before 2.6, `weights_only=True` could be made to run code."""
    torch.save({"a": torch.zeros(3)}, tmp_path / "pytorch_model.bin")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(ImportError, match="needs PyTorch 2.6 or newer"):
        TensorFiles(tmp_path)
    monkeypatch.setattr(torch, "__version__", "2.6.0")
    assert TensorFiles(tmp_path).shapes == {"a": (3,)}
