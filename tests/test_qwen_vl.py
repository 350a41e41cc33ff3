"""Qwen2.5-VL and Qwen3-VL against numbers of their published code, tiny and random."""

import keras
import numpy as np
import pytest
from keras import ops
from marks import kept
from qwen_vl_golden import (
    FOLDERS,
    LENGTH,
    golden,
    golden_model,
    golden_records,
    on_the_left,
)
from tiny_models import random_image

from keras_betakd.models import view_of
from keras_betakd.models.attention import (
    attention_weights,
    record_attention,
)
from keras_betakd.preprocessing.qwen_vl_format import rounded_up
from keras_betakd.qwen_vl import QwenVLCausalLM, image_tokens
from keras_betakd.vision_language.patch_grid import PatchGrid

FAMILIES = pytest.mark.parametrize("family", FOLDERS)
FEATURES, LOGITS = 1e-5, 1e-4


def inputs_of(model, family):
    return model.preprocessor(golden_records(family))


def close(got, expected, tolerance):
    got = ops.convert_to_numpy(got)
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance)


def real_tokens(features, grids):
    """Features (B, M, N, H) without padding, one image after another."""
    found = ops.convert_to_numpy(features)
    counts = grids.prod(axis=-1) // 4
    return np.concatenate(
        [found[i, j, : counts[i, j]] for i, j in np.argwhere(counts > 0)]
    )


def padded_more(x, value):
    """The same images in twice the patches, the padding filled with a value."""
    pixels = np.array(x["pixel_values"])
    real = np.arange(pixels.shape[2]) < x["image_grid_thw"].prod(-1)[..., None]
    pixels = np.where(real[..., None], pixels, np.float32(value))
    pixels = np.concatenate([pixels, np.full_like(pixels, value)], axis=2)
    slots = x["pixel_values"].shape[2] // 4
    numbers = x["image_sources"]
    moved = numbers // slots * 2 * slots + numbers % slots
    sources = np.where(numbers < 0, -1, moved)
    return {**x, "pixel_values": pixels, "image_sources": sources.astype("int32")}


@FAMILIES
def test_records_become_the_published_ids_positions_and_labels(family):
    model, expected = golden_model(family), golden(family)
    x, y, weight = inputs_of(model, family)
    mask = expected["right/attention_mask"].astype(bool)
    for i, row in enumerate(mask):
        # The published rows end with a newline, which no answer needs.
        count = row.sum() - 1
        assert x["padding_mask"][i].sum() == count
        ids = expected["right/input_ids"][i, :count]
        np.testing.assert_array_equal(x["token_ids"][i, :count], ids)
        places = expected["right/position_ids"][:, i, :count]
        np.testing.assert_array_equal(x["position_ids"][i, :, :count], places)
        # Tokens behind those of a row go on by one, with its own distance.
        delta = expected["right/rope_deltas"][i, 0]
        behind = np.arange(count, LENGTH) + delta
        np.testing.assert_array_equal(x["position_ids"][i, 2, count:], behind)
        trained = np.flatnonzero(weight[i])
        labels = expected["right/labels"][i]
        kept = np.flatnonzero(labels != -100)[:-1]  # without that newline
        np.testing.assert_array_equal(trained + 1, kept)
        np.testing.assert_array_equal(y[i, trained], labels[kept])


@pytest.mark.backends
@pytest.mark.parametrize("family", kept(FOLDERS, "qwen2_5_vl"))
@pytest.mark.one_of_two("tensorflow")
def test_image_features(family):
    model, expected = golden_model(family), golden(family)
    x, _, _ = inputs_of(model, family)
    for case in (x, padded_more(x, 0.0), padded_more(x, 50.0)):
        grids = case["image_grid_thw"]
        found = model.backbone.vision_encoder(case["pixel_values"], grids)
        merged = real_tokens(model.backbone.projector(found[0]), grids)
        close(merged, expected["vision/features"], FEATURES)
        for k, merger in enumerate(model.backbone.deepstack_projectors):
            merged = real_tokens(merger(found[1 + k]), grids)
            close(merged, expected[f"vision/deepstack_{k}"], FEATURES)


@pytest.mark.backends
@pytest.mark.parametrize("family", kept(FOLDERS, "qwen2_5_vl", "qwen3_vl"))
def test_logits_with_padding_on_the_right_and_on_the_left(family):
    model, expected = golden_model(family), golden(family)
    x, _, _ = inputs_of(model, family)
    got = ops.convert_to_numpy(model(x))[:, ::5]
    kept = x["padding_mask"][:, ::5].astype(bool)
    close(got[kept], expected["right/logits_every_5th"][kept], LOGITS)
    # The row's newline, which ends the published rows.
    ids = expected["right/input_ids"].astype("int32")
    mask = expected["right/attention_mask"].astype("int32")
    whole = {**x, "token_ids": ids, "padding_mask": mask}
    left = on_the_left(whole)
    np.testing.assert_array_equal(left["token_ids"], expected["left/input_ids"])
    close(model(left)[:, -1], expected["left/last_logits"], LOGITS)
    if family == "qwen2_5_vl":
        hidden = ops.convert_to_numpy(model.backbone(left))[:, -1]
        table = ops.convert_to_numpy(model.backbone.token_embedding.embeddings)
        close(hidden @ table.T, expected["tied/last_logits"], LOGITS)


@FAMILIES
def test_greedy_answers_of_a_mixed_batch(family):
    """Positions behind an image go on from its longer side, in the cache, too."""
    model, expected = golden_model(family), golden(family)
    model.compile(sampler="greedy")
    records = {k: v for k, v in golden_records(family).items() if k != "responses"}
    length = LENGTH + 8
    x = model.preprocessor.generate_preprocess(records, sequence_length=length)
    starts = ops.convert_to_numpy(x["padding_mask"]).sum(axis=1)
    function = model.make_generate_function()
    found = ops.convert_to_numpy(function(x, stop_token_ids=None)["token_ids"])
    for i, start in enumerate(starts):
        prompt = expected["gen/prompt_ids"][i][expected["gen/attention_mask"][i] > 0]
        np.testing.assert_array_equal(found[i, :start], prompt)
        answer = expected["gen/new_ids"][i]
        np.testing.assert_array_equal(found[i, start : start + 8], answer)
    # The logits of the last token, without a cache.
    x = {key: ops.convert_to_numpy(value) for key, value in x.items()}
    x["token_ids"] = found
    x["padding_mask"] = np.arange(length) < starts[:, None] + 7
    last = ops.convert_to_numpy(model(x))[np.arange(4), starts + 6]
    close(last, expected["gen/logits_last"], LOGITS)


@pytest.mark.backends
@pytest.mark.parametrize("sampler", kept(["greedy", "beam"], "greedy"))
@pytest.mark.one_of_two("jax")
def test_answers_alone_and_in_a_batch(sampler):
    """`<|endoftext|>` pads and ends: keras-hub took the padding where the answer was to
    stand for its end. And beams are rows of their own, for which prompts are repeated.
    """
    model = golden_model("qwen2_5_vl", sequence_length=120)
    records = golden_records("qwen2_5_vl")
    one = {"prompts": records["prompts"][0], "images": records["images"][0]}
    model.compile(sampler=sampler)
    alone = model.generate(one)
    prompt = "What is it?\nassistant\n"
    assert isinstance(alone, str) and len(alone.split(prompt)[1]) > 20
    assert "<|image_pad|>" not in alone
    rows = [0, 0, 0] if sampler == "beam" else [0, 1, 2]
    several = {key: [records[key][i] for i in rows] for key in ("prompts", "images")}
    assert model.generate(several)[0] == alone


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_attention_of_the_first_block(family):
    model = golden_model(family)
    view = view_of(model)
    x, _, _ = inputs_of(model, family)
    layer = view.attention_layers()[0]
    with record_attention(layer) as calls:
        view.hidden_states(x)
    rows = ops.arange(x["token_ids"].shape[1], dtype="int32")[None]
    got = ops.convert_to_numpy(attention_weights(layer, calls, rows))[0]
    expected = golden(family)["text/attention_0"][0].mean(axis=0)
    kept = x["padding_mask"][0].astype(bool)
    np.testing.assert_allclose(got[kept], expected[kept], rtol=0, atol=1e-6)


def logits_after(family, change):
    """Golden logits at real tokens, and those of a model with one mistake."""
    model = golden_model(family)
    x, _, _ = inputs_of(model, family)
    x = {key: np.array(value) for key, value in x.items()}
    change(model, x)
    got = ops.convert_to_numpy(model(x))[:, ::5]
    kept = x["padding_mask"][:, ::5].astype(bool)
    return golden(family)["right/logits_every_5th"][kept], got[kept]


def rebuilt(model, **changes):
    """Gives the model a backbone with other settings and the same weights."""
    config = {**model.backbone.get_config(), **changes}
    other = type(model.backbone).from_config(config)
    other.set_weights(model.backbone.get_weights())
    keep = QwenVLCausalLM(other)
    model.call = keep.call


def raster_order(model, x):
    for (i, j), pixels in grids_of(x):
        _, rows, columns = x["image_grid_thw"][i, j]
        blocks = pixels.reshape(rows // 2, columns // 2, 2, 2, -1)
        raster = blocks.transpose(0, 2, 1, 3, 4).reshape(rows * columns, -1)
        x["pixel_values"][i, j, : rows * columns] = raster


def channels_last(model, x):
    for (i, j), pixels in grids_of(x):
        moved = pixels.reshape(len(pixels), 3, -1).transpose(0, 2, 1)
        x["pixel_values"][i, j, : len(pixels)] = moved.reshape(len(pixels), -1)


def grids_of(x):
    counts = x["image_grid_thw"].prod(axis=-1)
    for i, j in np.argwhere(counts > 0):
        yield (i, j), x["pixel_values"][i, j, : counts[i, j]].copy()


def plain_positions(model, x):
    x["position_ids"][:] = np.arange(x["position_ids"].shape[-1])


def rows_and_columns_exchanged(model, x):
    x["position_ids"] = x["position_ids"][:, [0, 2, 1]]


def without_query_bias(model, x):
    for layer in model.backbone.transformer_layers:
        bias = layer.self_attention.query.bias
        bias.assign(ops.zeros(bias.shape))


MISTAKES = {
    "plain positions": plain_positions,
    "rows and columns exchanged": rows_and_columns_exchanged,
    "theta": lambda model, x: rebuilt(model, rope_max_wavelength=10000),
    "sections": lambda model, x: rebuilt(model, rope_sections=(3, 3, 2)),
    "all blocks full": lambda model, x: rebuilt(model, full_attention_layers=(0, 1)),
    "all blocks in windows": lambda model, x: rebuilt(model, full_attention_layers=()),
    "window twice as large": lambda model, x: rebuilt(model, window_size=32),
    "raster order": raster_order,
    "channels last": channels_last,
    "no query bias": without_query_bias,
    "norm eps": lambda model, x: rebuilt(model, layer_norm_epsilon=1e-5),
}
OF_QWEN3 = ("plain positions", "rows and columns exchanged", "theta", "raster order")


@pytest.mark.parametrize(
    ("family", "mistake"),
    [("qwen2_5_vl", name) for name in MISTAKES]
    + [("qwen3_vl", name) for name in OF_QWEN3],
)
def test_a_mistake_moves_the_golden_logits(family, mistake):
    """None of them shows in a shape, or in text alone."""
    expected, got = logits_after(family, MISTAKES[mistake])
    assert np.abs(got - expected).max() > 5 * LOGITS


def test_the_other_gelu_and_the_other_axes_move_the_golden_numbers(monkeypatch):
    def tanh_gelu(x, approximate=True):
        return keras.ops.gelu(x, approximate=True)

    model, expected = golden_model("qwen2_5_vl"), golden("qwen2_5_vl")
    x, _, _ = inputs_of(model, "qwen2_5_vl")
    found = model.backbone.vision_encoder(x["pixel_values"], x["image_grid_thw"])
    with monkeypatch.context() as patch:
        patch.setattr(image_tokens, "merger_activation", tanh_gelu)
        merged = real_tokens(model.backbone.projector(found[0]), x["image_grid_thw"])
    assert np.abs(merged - expected["vision/features"]).max() > 10 * FEATURES
    angles = model.backbone.rotary_angles
    other = type(angles).from_config({**angles.get_config(), "interleaved": True})
    cosine, changed = (
        ops.convert_to_numpy(a(x["position_ids"])[0]) for a in (angles, other)
    )
    assert np.abs(cosine - changed).max() > 0.1


def test_windows_have_room_for_images_of_every_shape():
    """The number of windows is bounded by the patches, whatever the shape."""
    grids = np.array([(1, h, w) for h in range(2, 42, 2) for w in range(2, 42, 2)])
    # Each number of patches is compiled anew on JAX: a few, of which some are those of
    # long and of square grids.
    for side in (2, 4, 8):
        for patches in (4, 36, 80, 144, 240, 400, 720):
            some = grids[grids.prod(axis=-1) == patches]
            windows = PatchGrid(some, int(patches), 2).windows(side)
            targets = ops.convert_to_numpy(windows.targets)
            sources = ops.convert_to_numpy(windows.sources)
            back = np.take_along_axis(sources, targets, axis=1)
            np.testing.assert_array_equal(
                back, np.tile(np.arange(patches), (len(some), 1))
            )
            assert ops.convert_to_numpy(windows.mask).any(axis=-1).all()


def test_an_epoch_of_mixed_sizes_has_few_shapes():
    """Each shape is a compilation; unrounded, nearly every batch would be one."""
    model = golden_model("qwen2_5_vl", sequence_length=300)
    rng = np.random.default_rng(0)
    shapes = set()
    for i in range(60):
        size = rng.integers(8, 90, 2)
        records = {
            "prompts": ["<image>what"],
            "responses": ["red"],
            "images": [[random_image(i, *size)]],
        }
        x, _, _ = model.preprocessor(records)
        shapes.add(x["pixel_values"].shape[1:3])
    most = 4096 // 64
    buckets = {rounded_up(n, most) for n in range(1, most + 1)}
    assert shapes <= {(1, 4 * n) for n in buckets} and len(buckets) == 12
