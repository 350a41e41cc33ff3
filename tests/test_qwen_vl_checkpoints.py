"""Checkpoints of Qwen2-VL, Qwen2.5-VL and Qwen3-VL in the layouts they are found in."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from keras import ops
from qwen_vl_folders import (
    INDEX,
    config,
    doubled_config,
    folder,
    newer_config,
    outer,
    read,
    tensors,
    text,
    vision,
    with_prefixes,
    write,
)
from qwen_vl_golden import (
    FOLDERS,
    GOLDEN,
    LENGTH,
    checkpoint,
    golden,
    golden_model,
    golden_records,
    on_the_left,
)

from keras_betakd.models import load_model
from keras_betakd.qwen_vl import QwenVLBackbone, QwenVLCausalLM, load_qwen_vl
from keras_betakd.qwen_vl.configurations import backbone_arguments
from keras_betakd.qwen_vl.names import canonical_name, targets
from keras_betakd.qwen_vl.shapes import tensor_shapes

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
# As published, and as newer versions have it in memory; Qwen3-VL is published so.
PREFIXES = ("visual.", "model."), ("model.visual.", "model.language_model.")


def values(weights):
    return {v.path: ops.convert_to_numpy(ops.cast(v, "float32")) for v in weights}


def settings(model):
    return {k: v for k, v in model.backbone.get_config().items() if k != "name"}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layout_loads_to_the_same_numbers(family, tmp_path):
    expected = load_qwen_vl(folder(tmp_path / "expected", family=family))
    forms = [config(family), doubled_config(family), newer_config(family)]
    buffer = {"model.rotary_emb.inv_freq": np.ones(8, "float32")}
    for i, base in enumerate([*forms, forms[0]]):
        path = folder(
            tmp_path / f"{i}",
            family=family,
            base=base,
            shards=1 + i,
            weights=buffer,
            rename=with_prefixes(*PREFIXES[(i + 1) // 2 % 2]),
        )
        model = load_qwen_vl(path)
        assert settings(model) == settings(expected)
        found = values(model.backbone.weights)
        for key, value in values(expected.backbone.weights).items():
            np.testing.assert_array_equal(found[key], value, err_msg=key)


@pytest.mark.parametrize("kind, shards", [("safetensors", 2), ("bin", 1), ("bin", 3)])
def test_files_of_both_kinds(kind, shards, tmp_path):
    path = folder(tmp_path / "a", kind=kind, shards=shards)
    model = load_qwen_vl(path, dtype="bfloat16", sequence_length=300)
    assert isinstance(model, QwenVLCausalLM)
    assert model.preprocessor.sequence_length == 300
    assert {w.dtype for w in model.backbone.weights} == {"bfloat16"}
    found = values(model.backbone.weights)
    for name, target in targets(model.backbone).items():
        exact = target.values(tensors("qwen2_5_vl")[name].astype("float32"))
        rounded = exact.astype(ml_dtypes.bfloat16).astype("float32")
        np.testing.assert_array_equal(found[target.variable.path], rounded)


@pytest.mark.parametrize("family", FOLDERS)
def test_names_and_shapes_are_those_of_the_published_code(family):
    names = read(GOLDEN / FOLDERS[family] / "names.json")
    shapes = [tuple(names["shapes"][name]) for name in names["in_file"]]
    found = tensor_shapes(backbone_arguments(config(family)))
    for kind in ("in_file", "in_memory"):
        canonical = [canonical_name(name) for name in names[kind]]
        assert found == dict(zip(canonical, shapes, strict=True))


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_shapes_of_a_configuration_are_those_of_its_model(family, is_tied):
    """Widths that differ from each other, so that none stands for another."""
    arguments = backbone_arguments(config(family)) | {
        "vocabulary_size": 70,
        "num_layers": 3,
        "num_query_heads": 6,
        "num_key_value_heads": 3,
        "vision_intermediate_dim": 52,
        "temporal_patch_size": 3,
        "tie_word_embeddings": is_tied,
    }
    backbone = QwenVLBackbone(**arguments)
    found = targets(backbone)
    assert {name: t.shape for name, t in found.items()} == tensor_shapes(arguments)
    paths = [target.variable.path for target in found.values()]
    assert sorted(paths) == sorted(v.path for v in backbone.weights)


def test_a_patch_kernel_keeps_the_order_of_channels_frames_rows_and_columns():
    backbone = QwenVLBackbone(**backbone_arguments(config("qwen2_5_vl")))
    target = targets(backbone)["visual.patch_embed.proj.weight"]
    tensor = np.random.default_rng(0).normal(size=target.shape)
    kernel = target.values(tensor)
    frames, side = 2, 4
    for place in ((0, 0, 0, 0), (1, 1, 2, 3), (2, 0, 3, 1)):
        row = np.ravel_multi_index(place, (3, frames, side, side))
        expected = tensor[(slice(None), *place)].astype("float32")
        np.testing.assert_array_equal(kernel[row], expected)


HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"


@pytest.mark.parametrize("place", ["top", "text_config"])
def test_a_tied_model_may_have_a_copy_of_its_embedding(place, tmp_path):
    base = newer_config("qwen2_5_vl")
    del base["tie_word_embeddings"]
    (base if place == "top" else base["text_config"])["tie_word_embeddings"] = True
    table, expected = tensors("qwen2_5_vl")[TABLE], golden("qwen2_5_vl")
    for name, head in (("without", None), ("with", table)):
        path = folder(tmp_path / name, base=base, weights={HEAD: head})
        model = load_qwen_vl(path, sequence_length=LENGTH)
        assert model.backbone.tie_word_embeddings
        x, _, _ = model.preprocessor(golden_records("qwen2_5_vl"))
        x["token_ids"] = expected["right/input_ids"].astype("int32")
        x["padding_mask"] = expected["right/attention_mask"].astype("int32")
        got = ops.convert_to_numpy(model(on_the_left(x)))[:, -1]
        np.testing.assert_allclose(got, expected["tied/last_logits"], rtol=0, atol=1e-4)


def test_a_tied_model_with_a_head_of_its_own_is_refused(tmp_path):
    """The head would be lost, in silence."""
    tied = outer(tie_word_embeddings=True)
    with pytest.raises(ValueError, match=f"'{HEAD}' in .* is not equal to '{TABLE}'"):
        load_qwen_vl(folder(tmp_path / "a", tied))
    almost = tensors("qwen2_5_vl")[TABLE].copy()
    almost[-1, -1] += 1
    with pytest.raises(ValueError, match="set tie_word_embeddings to false"):
        load_qwen_vl(folder(tmp_path / "b", tied, {HEAD: almost}))
    with pytest.raises(ValueError, match=r"lm_head.weight: \(2, 64\) instead of"):
        load_qwen_vl(folder(tmp_path / "c", tied, {HEAD: almost[:2]}))
    with pytest.raises(ValueError, match="1 missing:\n  lm_head.weight"):
        load_qwen_vl(folder(tmp_path / "d", weights={HEAD: None}))


def test_everything_that_does_not_agree_is_listed(tmp_path):
    weights = {
        "model.layers.1.mlp.up_proj.weight": None,
        "model.layers.2.mlp.up_proj.weight": np.ones((96, 64), "float32"),
        "visual.blocks.0.attn.qkv.bias": np.ones(95, "float32"),
        "visual.merger.mlp.0.bias": np.ones(128, "int8"),
    }
    with pytest.raises(ValueError) as caught:
        load_qwen_vl(folder(tmp_path / "a", weights=weights))
    message = str(caught.value)
    assert "1 missing:\n  model.layers.1.mlp.up_proj.weight" in message
    assert "1 not known:\n  model.layers.2.mlp.up_proj.weight" in message
    assert "visual.blocks.0.attn.qkv.bias: (95,) instead of (96,)" in message
    assert "visual.merger.mlp.0.bias: I8 instead of" in message


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_tensor_with_a_number_that_is_none_is_named(value, tmp_path):
    weights = tensors("qwen2_5_vl")["visual.blocks.1.norm1.weight"].copy()
    weights[3] = value
    path = folder(tmp_path / "a", weights={"visual.blocks.1.norm1.weight": weights})
    with pytest.raises(ValueError, match="'visual.blocks.1.norm1.weight' .* holds NaN"):
        load_qwen_vl(path)


def test_a_tensor_that_is_there_twice(tmp_path):
    norm = {
        "model.language_model.norm.weight": tensors("qwen2_5_vl")["model.norm.weight"]
    }
    with pytest.raises(ValueError, match="one tensor under two names"):
        load_qwen_vl(folder(tmp_path / "a", weights=norm))
    path = folder(tmp_path / "b")
    shutil.copy(path / "model.safetensors", path / "model-old.safetensors")
    with pytest.raises(ValueError, match="are in two files"):
        load_qwen_vl(path)


@pytest.mark.parametrize(
    "change, message",
    [
        (text(vocab_size=2 * 10**9), r"instead of \(2000000000, 64\)"),
        (text(num_hidden_layers=10**9), "describes 1000000000 layers"),
        (vision(depth=10**9), "describes 1000000000 layers"),
        (text(intermediate_size=10**12), r"instead of \(1000000000000, 64\)"),
        (vision(intermediate_size=10**12), "visual.blocks.0.mlp.gate_proj"),
        (vision(patch_size=8, window_size=32, spatial_patch_size=8), "patch_embed"),
        (vision(temporal_patch_size=4), "patch_embed"),
        (vision(spatial_merge_size=3), "visual.merger.mlp.0.weight"),
    ],
)
def test_sizes_are_compared_with_the_tensors_first(change, message, tmp_path):
    path = folder(tmp_path / "a", change)
    with pytest.raises(ValueError, match=message) as caught:
        load_qwen_vl(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "name, message",
    [
        ("config.json", "There is no '.*config.json'"),
        ("preprocessor_config.json", "There is no '.*preprocessor_config.json'"),
        ("vocab.json", "There is no tokenizer"),
        ("merges.txt", "There is no tokenizer"),
        ("model.safetensors", "holds no weights"),
    ],
)
def test_a_missing_file_is_named(name, message, tmp_path):
    path = folder(tmp_path / "a")
    (path / name).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        load_qwen_vl(path)
    with pytest.raises(FileNotFoundError, match="vocab.json, merges.txt and"):
        load_qwen_vl(tmp_path / "none")


def test_an_index_that_leads_outside(tmp_path):
    path = folder(tmp_path / "a", shards=2)
    index = read(path / INDEX)["weight_map"]
    write(path / INDEX, {"weight_map": {k: f"../{v}" for k, v in index.items()}})
    with pytest.raises(ValueError, match="names no file of weights in its own folder"):
        load_qwen_vl(path)


@pytest.mark.backends
def test_any_loader_of_presets_takes_a_public_checkpoint(tmp_path):
    """And a preset of it has the same numbers."""
    model = load_model(checkpoint("qwen3_vl"), sequence_length=300)
    assert isinstance(model, QwenVLCausalLM)
    assert model.preprocessor.sequence_length == 300
    assert model.preprocessor.prompt_template == "qwen3_vl"
    model.save_to_preset(str(tmp_path / "preset"))
    again = load_model(str(tmp_path / "preset"))
    found = values(again.backbone.weights)
    for key, value in values(model.backbone.weights).items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)
    assert golden_model("qwen2_5_vl").preprocessor.prompt_template == "qwen2.5_vl"


@pytest.mark.parametrize(
    "kind", ["qwen3_vl_moe", "qwen2_5_omni", "qwen3_omni_moe", "qwen2_5_vl_text"]
)
def test_other_models_of_the_house_are_refused_by_name(kind, tmp_path):
    path = folder(tmp_path / "a", outer(model_type=kind))
    message = f"Qwen2.5-VL and dense Qwen3-VL.*model_type='{kind}'"
    for load in (load_qwen_vl, load_model):
        with pytest.raises(ValueError, match=message):
            load(str(path))


@pytest.mark.parametrize("content", ["[]", "null", '{"a"', '{"a": 1, "a": 2}', "\xff"])
def test_a_config_that_is_no_json_object(content, tmp_path):
    path = folder(tmp_path / "a")
    (path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match="config.json"):
        load_qwen_vl(path)


def test_a_config_without_model_type(tmp_path):
    path = folder(tmp_path / "a")
    write(path / "config.json", json.loads("{}"))
    with pytest.raises(ValueError, match="describes another model"):
        load_qwen_vl(path)
