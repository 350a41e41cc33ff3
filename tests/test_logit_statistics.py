"""Numbers of the teacher's logits, computed a few rows at a time.

`features="uncertainty"` once made the teacher's logits (B, K, V) of all rows, which the
fused head is there to avoid: 2 GB a copy at 262,144 classes and 2,048 tokens.
"""

import keras
import numpy as np
import pytest
from keras import ops

from keras_betakd.betas.teacher_features import UNCERTAINTY_WIDTH, uncertainty_of
from keras_betakd.head_loss.logit_statistics import fits_one_tile, logit_statistics
from keras_betakd.models.heads import HeadMatrix

CLASSES, WIDTH = 11, 4


def uncertainty64(logits):
    """Entropy, top probability and margin, from float64."""
    logits = logits - logits.max(-1, keepdims=True)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        log_p = np.where(p > 0, np.log(p), 0.0)
    best = np.sort(p, axis=-1)[..., ::-1]
    return np.stack(
        [-(p * log_p).sum(-1), best[..., 0], best[..., 0] - best[..., 1]], -1
    )


def head_and_rows():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(CLASSES, WIDTH)).astype("float32")
    bias = np.zeros(CLASSES, "float32")
    bias[3] = -np.inf  # an excluded class
    rows = 3 * rng.normal(size=(3, 5, WIDTH)).astype("float32")
    head = HeadMatrix(ops.array(kernel), bias=ops.array(bias))
    return head, rows, rows.astype("float64") @ kernel.T.astype("float64") + bias


@pytest.mark.backends
@pytest.mark.parametrize("tile_rows", [1, 4, 15, 100])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_tiles_give_what_all_logits_give(tile_rows, compiled):
    head, rows, logits = head_and_rows()
    supervised = np.random.default_rng(1).random((3, 5)) < 0.5
    rows[~supervised] = np.nan

    def statistics(rows, supervised):
        size = UNCERTAINTY_WIDTH
        return logit_statistics(uncertainty_of, size, rows, head, supervised, tile_rows)

    if compiled and keras.backend.backend() == "jax":
        import jax

        statistics = jax.jit(statistics)
    elif compiled and keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        statistics = tf.function(statistics)
    found = ops.convert_to_numpy(statistics(ops.array(rows), ops.array(supervised)))
    expected = np.where(supervised[..., None], uncertainty64(logits), 0.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_nothing_supervised_is_zero():
    head, rows, _ = head_and_rows()
    none = np.zeros((3, 5), bool)
    found = logit_statistics(
        uncertainty_of, UNCERTAINTY_WIDTH, ops.array(rows), head, ops.array(none), 4
    )
    np.testing.assert_array_equal(ops.convert_to_numpy(found), 0.0)


def test_few_rows_fit_one_tile_and_many_do_not():
    assert fits_one_tile(8, 1000, 16)
    assert not fits_one_tile(100_000, 262_144, 16)
    assert not fits_one_tile(None, 1000, 16)  # unknown in a graph of TensorFlow
