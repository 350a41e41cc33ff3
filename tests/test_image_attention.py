"""Attention among image tokens: what is read, left out, compared and learned."""

import contextlib
import json
import types

import keras
import numpy as np
import pytest
from gradients import compiled_value_and_grads, slopes
from keras import ops
from test_families import model_of, records
from test_features import numbers, pair
from test_qwen_vl_pairs import mixed
from tiny_families import SUPPORT
from tiny_models import tiny_gemma3, tiny_pali_gemma, vqa_records

import keras_betakd as kd
from keras_betakd.distillation.image_attention import compare_image_attention
from keras_betakd.models import Features, view_of
from keras_betakd.models.attention import attention_among, record_attention
from keras_betakd.models.features import FeatureReader

GROUPS = ((0, 1), (-1,))


def energy_of(groups=GROUPS, blocks=(0, 0)):
    return kd.ImageAttentionEnergy(groups, blocks)


def gemma_pair(**options):
    """Two pairs of blocks, four times as many image tokens in the teacher."""
    teacher = tiny_gemma3(16, grid=4, num_layers=2, **options)
    distiller = pair({"image": energy_of()}, teacher, tiny_gemma3(**options))
    # Attention of new models is nearly even.
    for view in (distiller.teacher_parts[0].view, distiller.student_view):
        for layer in view.attention_layers():
            layer.query_norm.scale.assign(5.0 + layer.query_norm.scale)
    return distiller


# In float64, image by image


def softmax64(query, key, mask):
    """(T, heads, d) twice and bool (T, T) to the mean over the heads, (T, T)."""
    key = np.repeat(key, query.shape[1] // key.shape[1], axis=1)
    scores = np.einsum("ihd,jhd->hij", query, key) / np.sqrt(query.shape[-1])
    scores = np.where(mask, scores, -np.inf)
    scores = np.exp(scores - scores.max(-1, keepdims=True, initial=-1e9))
    total = scores.sum(-1, keepdims=True)
    return (scores / np.where(total == 0, 1, total)).mean(0)


def attention64(view, inputs):
    """Each record's attention in each block, (blocks, B, T, T)."""
    found = []
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        calls = [enter(record_attention(layer)) for layer in view.attention_layers()]
        view.hidden_states(inputs)
    for (attention,), rotations in calls:
        query, key = (ops.convert_to_numpy(r[2]).astype("float64") for r in rotations)
        mask = ops.convert_to_numpy(attention[1]["attention_mask"]).astype(bool)
        found.append([softmax64(*x) for x in zip(query, key, mask, strict=True)])
    return np.array(found)


def among64(attention, positions):
    """(B, T, T) at positions (B, P, N): (B, P, N, N)."""
    pairs = zip(attention, positions, strict=True)
    return np.array([[a[np.ix_(p, p)] for p in places] for a, places in pairs])


def energy64(theirs, ours):
    """The distance of two maps (N, N) of one pair of blocks."""
    kept = (theirs > 0) & (ours > 0)
    for x in (theirs, ours):
        kept &= x <= x.mean() + x.std(ddof=1)
    t, s = (
        [x[kept[:, j], j].mean() if kept[:, j].any() else 0 for j in range(len(x))]
        for x in (theirs, ours)
    )
    t, s = np.array(t), np.array(s)
    return 1 - t @ s / np.sqrt((t @ t) * (s @ s))


HALVE = np.array([[3, 3, 1, 0], [0, 1, 3, 3]]) / 7
SHRINK = np.kron(HALVE, HALVE)  # 4 x 4 tokens to 2 x 2


def compared(theirs, ours, energy=None, **grids):
    """Values and mask of maps (B, P, N, N) of one pair of blocks, as arrays."""
    images = ops.ones(np.shape(ours)[:2], dtype="bool")
    teacher, student = (
        Features(present=images, grids=grids.get(role))
        for role in ("teacher", "student")
    )
    theirs, ours = ([ops.convert_to_tensor(x, "float32")] for x in (theirs, ours))
    energy = energy or energy_of([0], [0])
    found = compare_image_attention(energy, theirs, ours, teacher, student)
    return [ops.convert_to_numpy(x) for x in found]


# What is compared


def test_outliers_of_either_model_are_left_out():
    """By hand: without them the means are (1, 2, 1) / 10 and (2, 2, 2) / 10."""
    theirs = np.array([[0.1, 0.2, 0.9], [0.2, 0.1, 0.1], [0.1, 0.3, 0.1]])
    ours = np.array([[0.2, 0.2, 0.2], [0.7, 0.2, 0.2], [0.2, 0.2, 0.2]])
    value, mask = compared(theirs[None, None], ours[None, None])
    np.testing.assert_allclose(value, [[1 - np.sqrt(8) / 3]], rtol=1e-5)
    assert mask.all()
    theirs[0, 2], ours[1, 0] = 5.0, 3.0  # whatever they are
    other, _ = compared(theirs[None, None], ours[None, None])
    np.testing.assert_allclose(other, value, rtol=1e-6)
    whole = np.array([theirs.mean(0), ours.mean(0)])
    whole /= np.linalg.norm(whole, axis=1, keepdims=True)
    assert abs(1 - whole[0] @ whole[1] - value) > 0.1


@pytest.mark.parametrize("scale", [1.0, 1e-25])
def test_deviation_and_scale(scale):
    """0.31 is within the sample's deviation of the mean, not the population's."""
    theirs, ours = np.array([[0.1, 0.31], [0.12, 0.3]]), np.full((2, 2), 0.2)
    value, _ = compared(scale * theirs[None, None], ours[None, None])
    expected = 1 - (0.11 + 0.305) / np.sqrt(2 * (0.11**2 + 0.305**2))
    np.testing.assert_allclose(value, [[expected]], rtol=1e-5)


def test_even_attention_has_no_outliers():
    """Rounding could put all of it above its mean."""
    for share in (1 / 3, 1e-3 / 7, 1e-25 / 3):
        even = np.full((1, 1, 50, 50), share)
        value, mask = compared(even, even)
        assert value == 0 and mask.all()


def test_an_image_of_which_nothing_is_left_has_no_weight():
    """Each model gives half of the pairs that a causal mask allows all attention."""
    lower = np.tril(np.ones((4, 4)))
    first = lower * (np.cumsum(lower).reshape(4, 4) <= 5)
    second = lower - first
    theirs = np.stack([first + 1e-3 * second, lower])[:, None]
    ours = np.stack([second + 1e-3 * first, lower])[:, None]
    value, mask = compared(theirs, ours)
    assert mask.tolist() == [[False], [True]] and np.isfinite(value).all()
    ours[1, 0, 2, 1] = np.nan
    value, mask = compared(theirs, ours)  # but what is not finite is seen
    assert mask[1] and np.isnan(value[1])


def test_padding_within_images_changes_nothing():
    rng = np.random.default_rng(2)
    theirs, ours = rng.random((2, 1, 16, 16)), rng.random((2, 1, 4, 4))
    expected = [
        energy64(SHRINK @ t @ SHRINK.T, s)
        for t, s in zip(theirs[:, 0], ours[:, 0], strict=True)
    ]
    value, _ = compared(theirs, ours)
    np.testing.assert_allclose(value[:, 0], expected, rtol=1e-4)
    grids = {
        role: ops.full((2, 1, 2), side, dtype="int32")
        for role, side in (("teacher", 4), ("student", 2))
    }
    theirs, ours = (
        np.pad(x, [(0, 0), (0, 0), (0, 3), (0, 3)], constant_values=np.nan)
        for x in (theirs, ours)
    )
    value, mask = compared(theirs, ours, **grids)
    np.testing.assert_allclose(value[:, 0], expected, rtol=1e-4)
    assert mask.all()


LAYER = types.SimpleNamespace(
    num_query_heads=2,
    num_key_value_heads=1,
    query_head_dim_normalize=True,
    logit_soft_cap=None,
    use_sliding_window_attention=False,
)


@pytest.mark.backends
def test_gradient_of_queries_and_keys_against_float64():
    """Two images among text, which attend to all before them."""
    rng = np.random.default_rng(3)
    query, key = 2 * rng.normal(size=(1, 12, 2, 3)), 2 * rng.normal(size=(1, 12, 1, 3))
    positions = np.array([[[1, 2, 3, 4], [6, 7, 8, 9]]])
    mask = np.tril(np.ones((1, 12, 12), bool))
    others = rng.normal(size=(12, 2, 3)), rng.normal(size=(12, 1, 3))
    theirs = softmax64(*others, mask[0])
    theirs = among64(theirs[None], positions)
    energy, features = energy_of([0], [0]), Features(present=ops.ones((1, 2), "bool"))

    def expected(query, key):
        ours = among64(softmax64(query[0], key[0], mask[0])[None], positions)
        return sum(map(energy64, theirs[0], ours[0]))

    def value_of(query, key):
        calls = [((), {"attention_mask": ops.array(mask)}, None)]
        calls = calls, [((), {}, query), ((), {}, key)]
        ours = attention_among(LAYER, calls, ops.array(positions, "int32"))
        maps = [ops.convert_to_tensor(theirs, "float32")], [ours]
        values, kept = compare_image_attention(energy, *maps, features, features)
        return ops.sum(ops.where(kept, values, float("nan"))), values

    inputs = query.astype("float32"), key.astype("float32")
    value, _, gradients = compiled_value_and_grads(value_of, 2)(*inputs)
    np.testing.assert_allclose(value, expected(query, key), rtol=1e-5)
    for ours, theirs in zip(gradients, slopes(expected, query, key), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=1e-6)
        assert np.abs(theirs).max() > 0.01


# What is read


@pytest.mark.parametrize("name", SUPPORT["attention"])
def test_it_is_the_softmax_of_queries_and_keys(name):
    """A share of all that a token attends to; and who attends to later ones."""
    model = model_of(name)
    rows = mixed((1, 2)) if name.startswith("Qwen") else records(name)
    pairs = kd.DistillationPreprocessor(model.preprocessor, model.preprocessor, 8)
    inputs, view = pairs(rows)[0], view_of(model)
    reader = FeatureReader(view, {"image_attention"})
    features = reader.outputs(inputs["student"], inputs["student_positions"]).features
    found = ops.convert_to_numpy(features.named("image_attention"))
    places, present = (
        ops.convert_to_numpy(x) for x in view.image_layout(inputs["student"])
    )
    expected = among64(attention64(view, inputs["student"])[0], places)
    grids, later = features.grids, []
    for i, j in np.argwhere(present):
        real = slice(None if grids is None else int(ops.prod(grids[i, j])))
        got = found[i, j, real, real]
        wanted = expected[i, j, real, real]
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)
        later.append(np.triu(got, 1).max())
    assert (np.array(later) > 0).all() != name.startswith("Qwen")


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="counts what PyTorch makes and saves"
)
def test_one_block_at_a_time_is_held_for_each_head():
    """And of it no row but those of image tokens."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    heads, length, tokens = 32, 48, 4
    made, saved = [], []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            made.append(getattr(result, "numel", int)())
            return result

    mask = ops.ones((1, length, length), "bool")
    query = torch.rand(1, length, heads, 3, requires_grad=True)
    key = torch.rand(1, length, heads, 3, requires_grad=True)
    counts = dict.fromkeys(("num_query_heads", "num_key_value_heads"), heads)
    layer = types.SimpleNamespace(**{**vars(LAYER), **counts})
    positions = ops.reshape(ops.arange(tokens, dtype="int32"), (1, 1, tokens))
    calls = [((), {"attention_mask": mask}, None)], [((), {}, query), ((), {}, key)]
    keep = torch.autograd.graph.saved_tensors_hooks
    with keep(lambda x: saved.append(x.numel()) or x, lambda x: x), Sizes():
        attention_among(layer, calls, positions).sum().backward()
    assert max(made) == heads * length * tokens
    assert max(saved, default=0) <= query.numel()


# In a distiller


@pytest.mark.backends
@pytest.mark.traced
@pytest.mark.one_of_two("tensorflow")
def test_a_batch_against_float64_and_the_student_learns():
    """Records of two images, of one and of none; the mean of each, then of both."""
    distiller = gemma_pair(max_images=2)
    counts, batch = (2, 1, 0), {k: list(v) for k, v in vqa_records(3).items()}
    for i, count in enumerate(counts):
        image = batch["images"][i][0]
        batch["images"][i] = [image, image[::-1]][:count]
        words = batch["prompts"][i].replace("<image>", "")
        batch["prompts"][i] = "<image>" * count + words
    inputs, _, _ = distiller.preprocessor(batch)
    maps = {}
    views = {
        "teacher": distiller.teacher_parts[0].view,
        "student": distiller.student_view,
    }
    for role, groups in (("teacher", GROUPS), ("student", [(0,), (0,)])):
        x = {**inputs["student"], **inputs[role]}
        found = attention64(views[role], x)
        places = x["vision_indices"].astype(int).reshape(3, 2, -1)
        maps[role] = [among64(found[list(g)].mean(0), places) for g in groups]

    def of_image(i, j):
        pairs = zip(*maps.values(), strict=True)
        return sum(energy64(SHRINK @ t[i, j] @ SHRINK.T, s[i, j]) for t, s in pairs)

    expected = ((of_image(0, 0) + of_image(0, 1)) / 2 + of_image(1, 0)) / 2
    before = distiller.teacher.get_weights()
    distiller.compile(optimizer=keras.optimizers.Adam(0.01))
    options = {"batch_size": 3, "epochs": 5, "shuffle": False, "verbose": 0}
    history = distiller.fit(batch, **options).history["image"]
    np.testing.assert_allclose(history[0], expected, rtol=2e-4)
    assert history[-1] < 0.8 * history[0]
    for weight, now in zip(before, distiller.teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, now)


def test_equal_models_have_none():
    energies = {"image": energy_of([0], [0])}
    distiller = pair(energies, tiny_pali_gemma(), tiny_pali_gemma())
    logs = [numbers(distiller.test_on_batch(vqa_records(3), return_dict=True))]
    distiller.student.set_weights(distiller.teacher.get_weights())
    logs.append(numbers(distiller.test_on_batch(vqa_records(3), return_dict=True)))
    assert logs[0]["image"] > 1e-6 and logs[1]["image"] == 0


def test_a_cached_teacher_has_the_same_value(tmp_path):
    rows = {**vqa_records(4), "ids": list("abcd")}
    live = gemma_pair()
    kd.cache_teacher(live, rows, tmp_path, batch_size=2)
    teacher = kd.CachedTeacher(tmp_path)
    cached = kd.BetaKDDistiller(teacher, live.student, {"image": energy_of()})
    cached.compile(optimizer="sgd")
    expected, found = (
        numbers(d.test_on_batch(rows, return_dict=True)) for d in (live, cached)
    )
    np.testing.assert_allclose(found["image"], expected["image"], rtol=1e-5)
    other = energy_of([0], [0])
    with pytest.raises(ValueError, match="compares image_attention.* a cache that"):
        kd.BetaKDDistiller(teacher, live.student, other)


# Its arguments


@pytest.mark.parametrize(
    "layers, message",
    [
        ((3, [0]), "`teacher_layers` must be a list"),
        (([0, 1], [0]), r"a group alone is written \(\(9, 10\),\)"),
        (([[]], [0]), "`teacher_layers` must be the number"),
        (([[0.5]], [0]), "`teacher_layers` must be the number"),
        (([0], [[0]]), "`student_layers` must be the number"),
        (([0], [True]), "`student_layers` must be the number"),
        (([], []), "`student_layers` must be the number"),
    ],
)
def test_layers_that_are_none_are_refused(layers, message):
    with pytest.raises(ValueError, match=message):
        kd.ImageAttentionEnergy(*layers)


def test_a_block_that_is_not_there_is_refused():
    for layers in (([[0, 3]], [0]), ([0], [-3])):
        with pytest.raises(ValueError, match="has 1 decoder blocks.* block -?3"):
            pair({"image": energy_of(*layers)}, tiny_gemma3(), tiny_gemma3())


def test_configuration_survives():
    energy = kd.ImageAttentionEnergy([(9, 10), -1], [5, 6], name="x", dtype="float64")
    saved = json.loads(json.dumps(keras.saving.serialize_keras_object(energy)))
    again = keras.saving.deserialize_keras_object(saved)
    assert again.teacher_layers == ((9, 10), (-1,))
    assert again.student_layers == (5, 6)
    assert again.get_config() == energy.get_config()
