"""Image settings and tokenizers of Qwen-VL checkpoints, in all forms and damaged."""

import json
import shutil

import numpy as np
import pytest
from fuzz_cases import EXAMPLES
from hypothesis import given, settings
from hypothesis import strategies as st
from json_mutations import mutated
from keras import ops
from qwen_vl_folders import (
    config,
    folder,
    outer,
    read,
    text,
    tokenizer_folder,
    write,
)
from qwen_vl_golden import GOLDEN, checkpoint

from keras_betakd.qwen_vl import load_qwen_vl
from keras_betakd.qwen_vl.configurations import backbone_arguments
from keras_betakd.qwen_vl.image_settings import ImageSettings, read_image_settings
from keras_betakd.qwen_vl.published_tokenizer import read_tokenizer

some = settings(max_examples=8 * settings.default.max_examples)
IMAGES, TOKENS = "preprocessor_config.json", "tokenizer_config.json"
ARGUMENTS = backbone_arguments(config("qwen2_5_vl"))
SHARED = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.25, 1]}
AREAS = {"shortest_edge": 64, "longest_edge": 4096}


@pytest.mark.parametrize(
    "form",
    [
        {"min_pixels": 64, "max_pixels": 4096},
        {"size": AREAS},
        {"size": AREAS, "min_pixels": None, "max_pixels": None},
        # Where both are there, those in `size` are stale.
        {
            "size": {"min_pixels": 3136, "max_pixels": 12845056},
            **{"min_pixels": 64, "max_pixels": 4096},
        },
        {"size": {"min_pixels": 64, "max_pixels": 4096}},
    ],
)
def test_limits_in_all_forms(form, tmp_path):
    expected = ImageSettings(64, 4096, (0.5, 0.5, 0.5), (0.5, 0.25, 1), 8)
    write(tmp_path / IMAGES, {**SHARED, **form})
    assert read_image_settings(tmp_path, ARGUMENTS) == expected
    (tmp_path / IMAGES).unlink()
    whole = {"image_processor": {**SHARED, **form}, "processor_class": "any"}
    write(tmp_path / "processor_config.json", whole)
    assert read_image_settings(tmp_path, ARGUMENTS) == expected


@pytest.mark.parametrize(
    "published, given, expected",
    [
        ((3136, 12845056), (None, None), (200704, 1003520)),
        ((3136, 12845056), (3136, 12845056), (3136, 12845056)),
        ((3136, 12845056), (None, 401408), (200704, 401408)),
        ((3136, 12845056), (None, 50176), (3136, 50176)),
        ((3136, 12845056), (784, None), (784, 1003520)),
        ((3136, 1003520), (None, None), (3136, 1003520)),
        ((784, 50176), (None, None), (784, 50176)),
        ((784, 50176), (None, 12845056), (784, 12845056)),
    ],
)
def test_the_published_limits_are_taken_up_to_1280_tokens(published, given, expected):
    assert ImageSettings(*published, None, None, 28).limits(*given) == expected


def test_limits_of_loaded_models(tmp_path):
    converter = load_qwen_vl(checkpoint("qwen3_vl")).preprocessor.image_converter
    assert (converter.min_pixels, converter.max_pixels) == (64, 4096)
    assert (converter.patch_size, converter.mean) == (4, (0.5, 0.5, 0.5))
    path = folder(tmp_path / "a")
    write(path / IMAGES, {**SHARED, "min_pixels": 256, "max_pixels": 10**6})
    converter = load_qwen_vl(path).preprocessor.image_converter
    assert (converter.min_pixels, converter.max_pixels) == (256 * 64, 1280 * 64)
    assert converter.std == (0.5, 0.25, 1)
    converter = load_qwen_vl(path, min_pixels=64, max_pixels=640).preprocessor
    converter = converter.image_converter
    assert (converter.min_pixels, converter.max_pixels) == (64, 640)
    with pytest.raises(ValueError, match="`max_pixels` must be 64 or more"):
        load_qwen_vl(path, min_pixels=1, max_pixels=63)


@pytest.mark.parametrize(
    "wrong, key",
    [
        ({"min_pixels": 0}, "min_pixels"),
        ({"min_pixels": 64.5}, "min_pixels"),
        ({"min_pixels": 5000}, "limits of no image"),
        ({"min_pixels": 1, "max_pixels": 63}, "limits of no image"),
        ({"min_pixels": None}, "min_pixels"),
        ({"max_pixels": None, "size": 4096}, "size"),
        ({"max_pixels": None, "size": {"longest_edge": "4096"}}, "longest_edge"),
        ({"patch_size": 14}, "patch_size"),
        ({"merge_size": 1}, "merge_size"),
        ({"temporal_patch_size": 1}, "temporal_patch_size"),
        ({"image_mean": [0.5, 0.5]}, "image_mean"),
        ({"image_mean": None}, "image_mean"),
        ({"image_mean": [127, 127, 127]}, "image_mean"),
        ({"image_std": [0.5, 0.5, 0]}, "image_std"),
        ({"image_std": [0.5, 0.5, "1"]}, "image_std"),
        ({"do_resize": False}, "do_resize"),
        ({"do_rescale": False}, "do_rescale"),
        ({"do_normalize": 0}, "do_normalize"),
        ({"do_convert_rgb": False}, "do_convert_rgb"),
        ({"do_center_crop": True}, "do_center_crop"),
        ({"resample": 2}, "resample"),
        ({"rescale_factor": 1}, "rescale_factor"),
    ],
)
def test_images_that_the_model_was_not_trained_on(wrong, key, tmp_path):
    values = {**SHARED, "min_pixels": 64, "max_pixels": 4096, **wrong}
    write(tmp_path / IMAGES, values)
    with pytest.raises(ValueError, match=key) as caught:
        read_image_settings(tmp_path, ARGUMENTS)
    assert str(tmp_path / IMAGES) in str(caught.value)


def ids_of_golden_texts(tokenizer):
    cases = read(GOLDEN / "prompts.json")["tokenize"]
    return [tokenizer(case["text"]).tolist() for case in cases]


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("decoder", [True, False])
def test_tokenizers_in_both_forms(alone, decoder, tmp_path):
    """Newer folders have tokenizer.json alone, and no `added_tokens_decoder`."""
    path = tokenizer_folder(tmp_path / "a", alone)
    if not decoder:
        values = read(path / TOKENS)
        del values["added_tokens_decoder"]
        write(path / TOKENS, values)
    expected = [case["ids"] for case in read(GOLDEN / "prompts.json")["tokenize"]]
    tokenizer = read_tokenizer(path)
    assert ids_of_golden_texts(tokenizer) == expected
    assert len(tokenizer.special_tokens) == 14 and len(tokenizer.added_tokens) == 22


def test_merges_as_texts(tmp_path):
    """As older versions of the tokenizers package write them."""
    path = tokenizer_folder(tmp_path / "a")
    values = read(path / "tokenizer.json")
    values["model"]["merges"] = [" ".join(pair) for pair in values["model"]["merges"]]
    write(path / "tokenizer.json", values)
    expected = [case["ids"] for case in read(GOLDEN / "prompts.json")["tokenize"]]
    assert ids_of_golden_texts(read_tokenizer(path)) == expected


def change_token(**values):
    def change(content):
        content["added_tokens_decoder"]["324"].update(values)

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.update(added_tokens_decoder=[]), "added_tokens_decoder"),
        (lambda c: c.update(add_prefix_space=True), "add_prefix_space"),
        (lambda c: c.update(add_bos_token=True), "add_bos_token"),
        (lambda c: c["added_tokens_decoder"].pop("324"), "cannot be read"),
        (lambda c: c["added_tokens_decoder"].update(x={"content": "y"}), "wrong key"),
        (lambda c: c["added_tokens_decoder"].update({"400": 5}), "400"),
        (change_token(content="<|other|>"), "image_pad"),
        (change_token(content=""), "content"),
        (change_token(special="yes"), "special"),
        (change_token(lstrip=True), "lstrip"),
        (change_token(normalized=True), "normalized"),
    ],
)
def test_damaged_settings_of_a_tokenizer(change, message, tmp_path):
    path = tmp_path / "a"
    shutil.copytree(checkpoint("qwen2_5_vl"), path)
    values = read(path / TOKENS)
    change(values)
    write(path / TOKENS, values)
    with pytest.raises(ValueError, match=message) as caught:
        read_tokenizer(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.update(model=None), "model"),
        (lambda c: c["model"].update(type="WordPiece"), "type='WordPiece'"),
        (lambda c: c["model"].update(vocab=[]), "vocab"),
        (lambda c: c["model"].update(vocab={"a": -1}), "cannot be read"),
        (lambda c: c["model"].update(merges="a b"), "merges"),
        (lambda c: c["model"].update(merges=[["a"]]), "cannot be read"),
        (lambda c: c["model"].update(merges=[5]), "cannot be read"),
        (lambda c: c["model"].update(byte_fallback=True), "byte_fallback"),
        (lambda c: c.update(normalizer={"type": "NFKC"}), "type='NFKC'"),
        (lambda c: c.clear(), "model"),
    ],
)
def test_a_damaged_tokenizer_json(change, message, tmp_path):
    path = tokenizer_folder(tmp_path / "a")
    values = read(path / "tokenizer.json")
    change(values)
    write(path / "tokenizer.json", values)
    with pytest.raises(ValueError, match=message) as caught:
        read_tokenizer(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"a b c\n", b"nothing here\n"])
def test_damaged_merges(content, tmp_path):
    path = tmp_path / "a"
    shutil.copytree(checkpoint("qwen2_5_vl"), path)
    (path / "merges.txt").write_bytes(b"#version: 0.2\n" + content)
    if not content:  # every byte is a token of its own
        assert len(read_tokenizer(path)("the")) == 3
        return
    with pytest.raises(ValueError, match="cannot be read") as caught:
        read_tokenizer(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "change, message",
    [
        (outer(image_token_id=323), "image_token_id=323"),
        (outer(vision_start_token_id=0), "vision_start_token_id=0"),
        (outer(vision_end_token_id="322"), "vision_end_token_id='322'"),
    ],
)
def test_a_tokenizer_of_another_model(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_qwen_vl(folder(tmp_path / "a", change))


def test_an_embedding_with_fewer_rows_than_tokens(tmp_path):
    few = {
        name: np.ones((333, 64), "float32")
        for name in ("lm_head.weight", "model.embed_tokens.weight")
    }
    path = folder(tmp_path / "a", text(vocab_size=333), few)
    with pytest.raises(ValueError, match="wrong vocab_size. Expected: 334 or more"):
        load_qwen_vl(path)


INPUTS = {
    "token_ids": np.array([[313, 5, 321, 324, 322, 7]], "int32"),
    "padding_mask": np.ones((1, 6), "int32"),
    "position_ids": np.tile(np.arange(6, dtype="int32"), (1, 3, 1)),
    "image_sources": np.array([[-1, -1, -1, 0, -1, -1]], "int32"),
    "pixel_values": np.ones((1, 1, 4, 48), "float32"),
    "image_grid_thw": np.array([[[1, 2, 2]]], "int32"),
}
DAMAGED = (
    *("config.json", IMAGES, TOKENS, "tokenizer.json", "vocab.json"),
    "model.safetensors.index.json",
)


@pytest.fixture(scope="module", params=[True, False])
def published(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "qwen_vl"
    return tokenizer_folder(path, alone=request.param)


@some
@given(data=st.data())
def test_damaged_files_end_in_errors_that_name_them(data, published):
    name = data.draw(st.sampled_from(DAMAGED))
    copy = published.with_name("damaged")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(published, copy)
    if not (copy / name).exists():
        return
    value = data.draw(mutated(read(copy / name)))
    content = json.dumps(value).encode("utf-8", "surrogatepass")
    (copy / name).write_bytes(content)
    EXAMPLES[f"damaged {name} of Qwen-VL"] += 1
    try:
        model = load_qwen_vl(copy)
    except (ValueError, OSError) as error:
        assert copy.name in str(error), "the message names no file"
        return
    outputs = ops.convert_to_numpy(model.backbone(INPUTS))
    assert np.isfinite(outputs).all()


def test_the_undamaged_folder_loads(published):
    """Without this, all damage could be refused for another reason."""
    outputs = ops.convert_to_numpy(load_qwen_vl(published).backbone(INPUTS))
    assert np.isfinite(outputs).all()
