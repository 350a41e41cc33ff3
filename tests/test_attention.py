"""The attention that is read from a decoder's queries and keys is the decoder's own."""

import numpy as np
import pytest
from keras import ops
from marks import kept
from test_gemma3_pair import set_weights
from tiny_models import tiny_gemma3, tiny_pali_gemma, vqa_records

from keras_betakd import DistillationPreprocessor
from keras_betakd.models import view_of
from keras_betakd.models.attention import (
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


@pytest.mark.parametrize(
    "name, block",
    kept(
        [*((name, 0) for name in MODELS), ("gemma3", 1), ("gemma3", -1)],
        ("sliding window", 0),
        ("pali_gemma", 0),
    ),
)
def test_weights_are_the_softmax_of_the_layer(name, block):
    """keras-hub scales its queries in place on PyTorch: queries recorded before that
    were scaled twice."""
    model = set_weights(MODELS[name](), 1)
    view = view_of(model)
    preprocessor = DistillationPreprocessor(model.preprocessor, model.preprocessor, 6)
    inputs, _, _ = preprocessor(vqa_records(3))
    layer = attention_layer(view, block)
    with record_attention(layer) as calls, recorded(layer.softmax) as found:
        view.hidden_states(inputs["student"])
    expected = ops.convert_to_numpy(found[0][0][2])  # (B, kv heads, groups, T, T)
    expected = expected.mean(axis=(1, 2))
    weights = ops.convert_to_numpy(attention_weights(layer, calls))
    # Text and images; rows of padding attend to nothing.
    real = ops.convert_to_numpy(view.padding_mask(inputs["student"]))
    np.testing.assert_allclose(weights[real], expected[real], rtol=1e-4, atol=1e-6)
    assert np.std(weights[real]) > 1e-3
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
