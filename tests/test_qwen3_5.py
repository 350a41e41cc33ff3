"""Qwen3.5 against numbers of the published code, and what mistakes do to them."""

import functools
import json
import pathlib
import types

import keras
import keras_hub
import numpy as np
import pytest
from keras import ops

from keras_betakd.models import load_model, view_of
from keras_betakd.models.qwen_vision import image_tokens
from keras_betakd.models.uncached_decoding import token_decoder
from keras_betakd.preprocessing import chat_template, format_of, model_inputs
from keras_betakd.preprocessing.qwen3_5_format import Qwen3_5Format

FOLDER = pathlib.Path(__file__).parent / "golden" / "qwen3_5"
TEXTS = json.loads((FOLDER / "texts.json").read_text())
ROWS = TEXTS["rows"]
LENGTH = 128
# Of logits up to 10. Both codes add up in float32, and differ by 9e-5.
TOLERANCE = 4e-4


@functools.cache
def golden():
    return dict(np.load(FOLDER / "expected.npz"))


@functools.cache
def tiny():
    model = load_model(FOLDER / "checkpoint", dtype="float32")
    model.preprocessor.sequence_length = LENGTH
    return model


@pytest.fixture
def family():
    return format_of(tiny().preprocessor)


def records(answers=True):
    found = {
        "prompts": [row["prompt"] for row in ROWS],
        "images": [[golden()[f"image/{k}"] for k in row["images"]] for row in ROWS],
    }
    return {**found, "responses": [r["answer"] for r in ROWS]} if answers else found


def batch(family):
    return family.training(model_inputs(family.preprocessor, records()))


def features(pixel_values, image_grid_thw):
    """The image tokens of the pictures of one record: (N, tokens, width)."""
    encoder = tiny().backbone.vision_encoder
    tokens = image_tokens(encoder, pixel_values, image_grid_thw)
    return ops.convert_to_numpy(tokens)[0]


def off(x, expected="logits", view=None):
    """How far the logits of the answers of a batch are from the published ones."""
    x = {key: ops.convert_to_tensor(value) for key, value in x.items()}
    logits = ops.convert_to_numpy((view or view_of(tiny())).logits(x))
    found = []
    for i, row in enumerate(ROWS):
        start, end = len(row["prompt_ids"]) - 1, len(row["full_ids"]) - 1
        found.append(np.abs(logits[i, start:end] - golden()[f"{expected}/{i}"]).max())
    return found


def test_ids_are_the_published_ones(family):
    for case in TEXTS["tokenize"]:
        assert family.token_ids(case["text"]) == case["ids"]
        detokenized = family.preprocessor.tokenizer.detokenize(case["ids"])
        assert str(detokenized) == case["decoded"] or not case["ids"]


@pytest.mark.parametrize("picture", "ABCD")
def test_pictures_become_the_published_patches(family, picture):
    patches, grid = family._converted(golden()[f"image/{picture}"])
    assert grid == tuple(golden()[f"grid/{picture}"])
    assert grid == family._grid(golden()[f"image/{picture}"])
    assert patches.shape == (grid[1] * grid[2], 2, 4, 4, 3)
    np.testing.assert_array_equal(patches[:, 0], patches[:, 1])
    if f"pixels/{picture}" in golden():
        first = patches[:, 0].transpose(0, 3, 1, 2).reshape(len(patches), -1)
        expected = golden()[f"pixels/{picture}"]
        np.testing.assert_allclose(first, expected, rtol=0, atol=1e-5)


@pytest.mark.backends
@pytest.mark.one_of_two("tensorflow")
def test_features_are_the_published_ones(family):
    """Of pictures of different sizes, padded to the largest."""
    parts = [family._converted(golden()[f"image/{picture}"]) for picture in "ABCD"]
    found = features(**family._stacked([parts]))
    for row, (_, grid), picture in zip(found, parts, "ABCD", strict=True):
        expected = golden()[f"features/{picture}"]
        assert len(expected) == grid[1] * grid[2] // 4
        got = row[: len(expected)]
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5)


def test_inputs_and_logits_are_the_published_ones(family):
    """No, one and two pictures, and one in the middle, padded in one batch."""
    x, y, weight = batch(family)
    for i, row in enumerate(ROWS):
        size = len(row["full_ids"])
        assert x["token_ids"][i, :size].tolist() == row["full_ids"]
        positions = x["position_ids"][i, :, :size]
        np.testing.assert_array_equal(positions[1:], golden()[f"positions/{i}"])
        np.testing.assert_array_equal(positions[0], positions[1])
        trained = y[i][weight[i].astype(bool)].tolist()
        assert trained == row["full_ids"][len(row["prompt_ids"]) :]
    assert max(off(x)) < TOLERANCE


def test_logits_of_the_last_layer_alone_are_the_published_ones(family):
    """The one with full attention; JAX compiles the linear ones for minutes."""
    view, whole = view_of(tiny()), tiny().backbone
    parts = ("token_embedding", "layer_norm", "vision_encoder")
    view.backbone = types.SimpleNamespace(
        transformer_layers=whole.transformer_layers[-1:],
        **{name: getattr(whole, name) for name in parts},
    )
    assert whole.layer_types[-1] == "full_attention"
    assert max(off(batch(family)[0], "last_layer", view)) < TOLERANCE


def test_greedy_answers_are_the_published_ones(family):
    inputs = model_inputs(family.preprocessor, records(answers=False))
    decode = token_decoder(tiny())
    ids, start, end = decode(inputs, LENGTH, [-1], max_new_tokens=8)
    for i, row in enumerate(ROWS):
        assert start[i] == len(row["prompt_ids"])
        assert ids[i, start[i] : end[i]].tolist() == row["greedy"]


def test_prompts_are_those_of_its_template(family):
    for row in ROWS:
        prompt, system = row["prompt"], None
        if "system\n" in prompt:
            system = "You are a helpful assistant."
        question = prompt.split("user\n")[1].split("<|im_end|>")[0]
        assert chat_template("qwen3.5").chat([question], (), system).text == prompt


def in_rows(patches, grid):
    """Patches as keras-hub's converter puts them: row by row over the whole picture."""
    inside = patches.shape[1:]
    blocks = patches.reshape(grid[1] // 2, grid[2] // 2, 2, 2, *inside)
    return blocks.swapaxes(1, 2).reshape(patches.shape)


def test_patches_in_rows_give_other_features(family):
    patches, grid = family._converted(golden()["image/A"])
    found = features(**family._stacked([[(in_rows(patches, grid), grid)]]))
    assert np.abs(found[0, :6] - golden()["features/A"]).max() > 1


def test_the_converter_of_keras_hub_puts_patches_in_rows(family):
    """Where it need not resize, its patches are the same otherwise."""
    image = np.tile(golden()["image/C"], (1, 2, 1))
    own = family.preprocessor.image_converter(image.astype("float32"))
    own = {key: ops.convert_to_numpy(value) for key, value in own.items()}
    patches, grid = family._converted(image)
    assert own["grid_thw"].tolist() == list(grid) == [1, 2, 4]
    np.testing.assert_allclose(own["patches"], in_rows(patches, grid), atol=1e-5)
    assert np.abs(own["patches"] - patches).max() > 0.1


def test_the_size_rule_of_keras_hub_gives_other_grids(family):
    own = family.preprocessor.image_converter(golden()["image/D"].astype("float32"))
    assert ops.convert_to_numpy(own["grid_thw"]).tolist() == [1, 8, 12]
    assert golden()["grid/D"].tolist() == [1, 8, 10]


def test_other_positions_move_the_logits(family):
    """The index in the row, and rows for columns; but for a row without pictures."""
    x, _, _ = batch(family)
    length = x["token_ids"].shape[1]
    plain = np.broadcast_to(np.arange(length, dtype="int32"), x["position_ids"].shape)
    moved = off({**x, "position_ids": plain.copy()})
    assert moved[2] < TOLERANCE
    assert min(moved[0], moved[1], moved[3]) > 500 * TOLERANCE
    swapped = off({**x, "position_ids": x["position_ids"][:, [0, 1, 3, 2]]})
    assert min(swapped[0], swapped[1], swapped[3]) > 500 * TOLERANCE


def test_the_tokenizer_of_keras_hub_gives_other_ids(family):
    """It does not split texts into words, and does not normalise."""
    tokenizer = family.preprocessor.tokenizer
    cases = [case for case in TEXTS["tokenize"] if case["text"]]
    wrong = [c for c in cases if np.asarray(tokenizer(c["text"])).tolist() != c["ids"]]
    assert len(wrong) == 10
    assert {"two  spaces   three", "    return"} <= {case["text"] for case in wrong}


def test_a_preset_keeps_all_settings(family, tmp_path):
    """Sizes, limits, scale and offset; and all tokens that are not split."""
    tiny().save_to_preset(str(tmp_path))
    loaded = load_model(tmp_path)
    other = format_of(loaded.preprocessor)
    assert other.image_form()[1:] == family.image_form()[1:]
    image = golden()["image/D"]
    np.testing.assert_array_equal(
        other._converted(image)[0], family._converted(image)[0]
    )
    for case in TEXTS["tokenize"]:
        assert other.token_ids(case["text"]) == case["ids"]


def test_a_converter_of_another_kind_is_refused(family):
    @keras.saving.register_keras_serializable(package="tests")
    class Tiled(keras_hub.layers.Qwen3_5ImageConverter):
        def __init__(self, tiles=2, **kwargs):
            super().__init__(**kwargs)
            self.tiles = tiles

        def get_config(self):
            return {**super().get_config(), "tiles": self.tiles}

    class Own(keras_hub.layers.Qwen3_5ImageConverter):
        def call(self, inputs):
            return inputs

    for converter, message in ((Tiled(), r"settings \['tiles'\]"), (Own(), "a Own")):
        preprocessor = keras_hub.models.Qwen3_5CausalLMPreprocessor(
            family.preprocessor.tokenizer, image_converter=converter
        )
        with pytest.raises(ValueError, match=message):
            Qwen3_5Format(preprocessor)._converted(golden()["image/A"])


def test_settings_of_a_converter_are_kept(family):
    converter = keras_hub.layers.Qwen3_5ImageConverter(
        patch_size=8, temporal_patch_size=1, spatial_merge_size=1, min_pixels=1
    )
    preprocessor = keras_hub.models.Qwen3_5CausalLMPreprocessor(
        family.preprocessor.tokenizer, image_converter=converter
    )
    image = golden()["image/A"]
    patches, grid = Qwen3_5Format(preprocessor)._converted(image)
    assert grid == (1, 2, 3)
    assert patches.shape == (6, 1, 8, 8, 3)
    assert patches.max() > 200  # neither scaled nor shifted
