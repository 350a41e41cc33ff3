"""The attention that is read from a decoder's queries and keys is the decoder's own."""

import types

import keras
import numpy as np
import pytest
from gradients import compiled_value_and_grads, slopes
from keras import ops
from marks import kept
from test_gemma3_pair import set_weights
from tiny_models import tiny_gemma3, tiny_pali_gemma, vqa_records

from keras_betakd import DistillationPreprocessor
from keras_betakd.models import attention, view_of
from keras_betakd.models.attention import (
    attention_sum,
    attention_weights,
    record_attention,
)
from keras_betakd.models.features import attention_layer
from keras_betakd.models.hooks import recorded

pytestmark = pytest.mark.backends

MODELS = {
    "gemma3": lambda: tiny_gemma3(num_layers=3),
    "sliding window": lambda: tiny_gemma3(
        use_sliding_window_attention=True, sliding_window_size=5
    ),
    "soft cap": lambda: tiny_gemma3(attention_logit_soft_cap=0.5),
    "pali_gemma": tiny_pali_gemma,
}


@pytest.mark.parametrize("tile", [5, 256])
@pytest.mark.parametrize(
    "name, block",
    kept(
        [*((name, 0) for name in MODELS), ("gemma3", 1), ("gemma3", -1)],
        ("sliding window", 0),
        ("pali_gemma", 0),
    ),
)
def test_weights_are_the_softmax_of_the_layer(name, block, tile, monkeypatch):
    """keras-hub scales its queries in place on PyTorch: queries recorded before that
    were scaled twice."""
    monkeypatch.setattr(attention, "_TILE", tile)
    model = set_weights(MODELS[name](), 1)
    view = view_of(model)
    preprocessor = DistillationPreprocessor(model.preprocessor, model.preprocessor, 6)
    inputs, _, _ = preprocessor(vqa_records(3))
    layer = attention_layer(view, block)
    with record_attention(layer) as calls, recorded(layer.softmax) as found:
        view.hidden_states(inputs["student"])
    expected = ops.convert_to_numpy(found[0][0][2])  # (B, kv heads, groups, T, T)
    expected = expected.mean(axis=(1, 2))
    everywhere = np.broadcast_to(np.arange(expected.shape[1]), expected.shape[:2])
    weights = ops.convert_to_numpy(attention_weights(layer, calls, everywhere))
    # Text and images; rows of padding attend to nothing.
    real = ops.convert_to_numpy(view.padding_mask(inputs["student"]))
    np.testing.assert_allclose(weights[real], expected[real], rtol=1e-4, atol=1e-6)
    assert np.std(weights[real]) > 1e-3
    numbers = np.where(real, np.random.default_rng(0).uniform(size=real.shape), 0)
    summed = attention_sum(layer, calls, ops.convert_to_tensor(numbers, "float32"))
    summed, wanted = (
        ops.convert_to_numpy(summed),
        np.einsum("bkt,bk->bt", expected, numbers),
    )
    np.testing.assert_allclose(summed, wanted, rtol=1e-4, atol=1e-6)
    rows = np.array([[9, 5], [2, 7], [0, 12]])
    some = ops.convert_to_numpy(attention_weights(layer, calls, rows))
    np.testing.assert_allclose(
        some,
        np.take_along_axis(expected, rows[..., None], axis=1),
        rtol=1e-4,
        atol=1e-6,
    )
    assert "call" not in vars(layer)


def test_recording_inside_recording_leaves_nothing_behind():
    """The inner one once removed the outer one's `call` together with its own."""
    layer = view_of(tiny_gemma3()).image_projector()
    image = np.zeros((1, 1, 16, 16, 3), "float32")
    with recorded(layer) as outer:
        with recorded(layer) as inner:
            layer(image)
        layer(image)
    assert [len(calls[0]) for calls in (outer, inner)] == [2, 1]
    assert "call" not in vars(layer)


LAYER = types.SimpleNamespace(
    num_query_heads=2,
    num_key_value_heads=1,
    hidden_dim=8,
    query_head_dim_normalize=True,
    logit_soft_cap=None,
    use_sliding_window_attention=False,
)
LENGTH = 11


def calls_of(query, key, mask):
    """What `record_attention` yields."""
    return [((), {"attention_mask": mask}, None)], [((), {}, query), ((), {}, key)]


@pytest.mark.traced
@pytest.mark.parametrize("tile", [4, 256])
def test_gradients_of_rows_and_sums_against_float64(tile, monkeypatch):
    """Of tiles, each of which is computed again for the gradient, and of one."""
    monkeypatch.setattr(attention, "_TILE", tile)
    rng = np.random.default_rng(3)
    query, key = rng.normal(size=(2, LENGTH, 2, 3)), rng.normal(size=(2, LENGTH, 1, 3))
    mask = np.tril(np.ones((2, LENGTH, LENGTH), bool))
    rows = np.stack([np.arange(3, 10), np.arange(4, 11)])
    of_rows, of_sums = rng.normal(size=(2, 7, LENGTH)), rng.normal(size=(2, LENGTH))
    queries = rng.uniform(size=(2, LENGTH))

    def expected(query, key):
        scores = np.einsum("bkhd,btd->bhkt", query, key[:, :, 0]) / 3**0.5
        weights = np.exp(np.where(mask[:, None], scores, -np.inf))
        weights = (weights / weights.sum(-1, keepdims=True)).mean(axis=1)
        found = np.take_along_axis(weights, rows[..., None], axis=1)
        sums = np.einsum("bkt,bk->bt", weights, queries)
        return (found * of_rows).sum() + (sums * of_sums).sum()

    def value_of(query, key):
        calls = calls_of(query, key, ops.array(mask))
        found = attention_weights(LAYER, calls, ops.array(rows, "int32"))
        sums = attention_sum(LAYER, calls, ops.array(queries, "float32"))
        value = ops.sum(found * ops.array(of_rows, "float32"))
        return value + ops.sum(sums * ops.array(of_sums, "float32")), found

    inputs = query.astype("float32"), key.astype("float32")
    value, found, gradients = compiled_value_and_grads(value_of, 2)(*inputs)
    np.testing.assert_allclose(value, expected(query, key), rtol=1e-4)
    assert found.shape == of_rows.shape
    for ours, theirs in zip(gradients, slopes(expected, query, key), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=1e-5)
        assert np.abs(theirs).max() > 0.1


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="counts what PyTorch makes and saves"
)
@pytest.mark.parametrize("kind", ["rows", "sum"])
def test_memory_does_not_grow_with_the_square_of_the_length(kind, monkeypatch):
    """The weights of each head at all rows were held at once, and for the gradient."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    monkeypatch.setattr(attention, "_TILE", 4)
    made, saved = [], []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            made.append(getattr(result, "numel", int)())
            return result

    length, heads = 60, 8
    shape = 1, length, heads, 3
    query, key = (torch.rand(shape, requires_grad=True) for _ in range(2))
    counts = dict.fromkeys(("num_query_heads", "num_key_value_heads"), heads)
    layer = types.SimpleNamespace(**{**vars(LAYER), **counts})
    calls = calls_of(query, key, ops.ones((1, length, length), "bool"))
    keep = torch.autograd.graph.saved_tensors_hooks
    with keep(lambda x: saved.append(x.numel()) or x, lambda x: x), Sizes():
        if kind == "sum":
            found = attention_sum(layer, calls, ops.ones((1, length)))
        else:
            rows = ops.arange(length, dtype="int32")[None]
            found = attention_weights(layer, calls, rows)
        found.sum().backward()
    # One tile of the heads' weights; of all rows, their mean over the heads.
    assert max(made) <= max(4 * heads * length, length * length)
    assert max(saved) <= query.numel()
