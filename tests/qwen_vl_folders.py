"""Folders with the tiny Qwen-VL checkpoints, in other forms, to be damaged by tests."""

import json
import shutil

import numpy as np
import torch
from qwen_vl_golden import FOLDERS, GOLDEN, checkpoint
from safetensors.numpy import load_file, save_file

from keras_betakd.preprocessing.byte_pairs import QWEN2, byte_level_bpe
from keras_betakd.qwen_vl.configurations import backbone_arguments
from keras_betakd.qwen_vl.names import canonical_name
from keras_betakd.qwen_vl.published_tokenizer import read_tokenizer
from keras_betakd.qwen_vl.shapes import tensor_shapes

INDEX = "model.safetensors.index.json"


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def write(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")


def config(family):
    """The config.json as published, of Qwen2-VL by the rules that set it apart."""
    if family != "qwen2_vl":
        return read(checkpoint(family) / "config.json")
    found = config("qwen2_5_vl")
    kept = "depth num_heads in_chans patch_size spatial_merge_size temporal_patch_size"
    vision = {key: found["vision_config"][key] for key in kept.split()}
    vision |= {"embed_dim": 32, "mlp_ratio": 2, "hidden_size": 64}
    return {**found, "model_type": family, "vision_config": vision}


def newer_config(family):
    """The config.json as transformers 5 writes it."""
    if family == "qwen2_5_vl":
        return read(GOLDEN / FOLDERS[family] / "config_written_by_5.24.json")
    found = config(family)
    if family == "qwen3_vl":
        text = found["text_config"]
        rope = text.pop("rope_scaling") | {"rope_theta": text.pop("rope_theta")}
        text["rope_parameters"] = rope
    return found


def doubled_config(family):
    """As transformers 4.53 to 4.57 write it: text settings at the top, and again."""
    found = config(family)
    text = found.get("text_config", found)
    scaling = {**text["rope_scaling"], "rope_type": "default", "type": "default"}
    text["rope_scaling"] = scaling
    vision = {**found["vision_config"], "in_channels": 3}
    kept = {k: v for k, v in text.items() if k not in ("vision_config", "text_config")}
    return {**found, **kept, "vision_config": vision} | {
        "model_type": family,
        "text_config": {**kept, "model_type": f"{family}_text", "image_token_id": None},
    }


def tensors(family):
    """The tensors by their names in the file, of Qwen2-VL with a random encoder."""
    if family == "qwen2_vl":
        random = np.random.default_rng(5)
        text = tensors("qwen2_5_vl")
        return {
            name: text[name]
            if not name.startswith("visual.")
            else random.normal(0, 0.3, shape).astype("float32")
            for name, shape in tensor_shapes(backbone_arguments(config(family))).items()
        }
    found = {}
    for path in checkpoint(family).glob("*.safetensors"):
        found |= load_file(path)
    return found


def with_prefixes(vision, text):
    """A function that gives tensors other prefixes."""

    def rename(name):
        name = canonical_name(name)
        if name.startswith("visual."):
            return vision + name.removeprefix("visual.")
        if name.startswith("model."):
            return text + name.removeprefix("model.")
        return name

    return rename


def folder(
    path,
    change=None,
    weights=None,
    family="qwen2_5_vl",
    base=None,
    shards=1,
    kind="safetensors",
    rename=str,
):
    """A folder that loads, after `change` was applied to the dict of its config.

    Args:
        path: of the folder, which is made.
        change: function of the dict of config.json.
        weights: dict of tensors that are added or replaced; `None` removes one.
        family: `"qwen2_vl"`, `"qwen2_5_vl"` or `"qwen3_vl"`.
        base: dict, another config.json to begin with.
        shards: number of files.
        kind: `"safetensors"` or `"bin"`.
        rename: function of the names of the tensors.
    """
    path.mkdir()
    # Qwen2-VL's tokenizer and image settings are those of Qwen2.5-VL.
    source = checkpoint(family if family in FOLDERS else "qwen2_5_vl")
    for file in source.iterdir():
        if file.suffix in (".txt", ".json") and file.name != INDEX:
            shutil.copy(file, path / file.name)
    values = json.loads(json.dumps(config(family) if base is None else base))
    if change is not None:
        change(values)
    write(path / "config.json", values)
    found = {rename(name): array for name, array in tensors(family).items()}
    found = {k: v for k, v in (found | (weights or {})).items() if v is not None}
    stem = {"safetensors": "model", "bin": "pytorch_model"}[kind]
    names, index = sorted(found), {}
    for i in range(shards):
        part = {name: found[name] for name in names[i::shards]}
        number = f"-{i + 1:05}-of-{shards:05}" if shards > 1 else ""
        _save(part, path / f"{stem}{number}.{kind}")
        index |= dict.fromkeys(part, f"{stem}{number}.{kind}")
    if shards > 1:
        write(path / f"{stem}.{kind}.index.json", {"weight_map": index})
    return path


def tokenizer_folder(path, alone=True):
    """The published folder with a tokenizer.json, alone as transformers 5 has it."""
    shutil.copytree(checkpoint("qwen2_5_vl"), path)
    tokenizer = read_tokenizer(path)
    base = read(path / "vocab.json")
    whole = byte_level_bpe(base, tokenizer.merges, QWEN2, tokenizer.added_tokens)
    (path / "tokenizer.json").write_text(whole.to_str(), encoding="utf-8")
    if alone:
        (path / "vocab.json").unlink()
        (path / "merges.txt").unlink()
    return path


def _save(part, path):
    if path.suffix == ".safetensors":
        save_file({k: np.ascontiguousarray(v) for k, v in part.items()}, path)
        return
    # PyTorch does not read NumPy's bfloat16.
    whole = {k: torch.tensor(v.astype("float32")) for k, v in part.items()}
    torch.save({k: v.to(torch.bfloat16) for k, v in whole.items()}, path)


def text(**values):
    """A change of the text model's settings."""
    return lambda config: config.get("text_config", config).update(values)


def rope(**values):
    """A change of the settings of rotary positions."""
    return lambda config: config.get("text_config", config)["rope_scaling"].update(
        values
    )


def vision(**values):
    """A change of the vision encoder's settings."""
    return lambda config: config["vision_config"].update(values)


def outer(**values):
    """A change of the settings at the top."""
    return lambda config: config.update(values)


def without(*keys):
    """A change that removes settings; a key may have parts: `"vision_config/depth"`."""

    def change(config):
        for key in keys:
            *path, last = key.split("/")
            values = config
            for part in path:
                values = values[part]
            del values[last]

    return change
