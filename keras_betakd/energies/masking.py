"""Sample weights and Keras masks: which positions count in the mean of an energy."""

import keras
from keras import ops

_MEANS_OVER_ALL_POSITIONS = ("mean", "sum_over_batch_size")


def select_supervised(logits, weights):
    """Replaces the logits of positions without weight by ones.

    Multiplying by a zero weight does not mask: 0 * NaN is NaN, in the value and in the
    gradient. The selection happens before any arithmetic, so a position without weight
    leaves the value unchanged and gets a gradient of exactly 0, whatever its logits.

    Args:
        logits: tensor of shape `(..., V)`, for example `(B, K, V)`.
        weights: tensor of shape `(...)`, for example `(B, K)`; the positions where
            it is zero (or False) are replaced.

    Returns:
        A tensor like `logits`, with a row of ones (a uniform distribution, read as
        logits or as probabilities) in every position without weight.

    Example:

    >>> logits = ops.array([[1.0, 2.0], [float("nan"), 0.0]])
    >>> selected = select_supervised(logits, ops.array([1.0, 0.0]))
    >>> ops.convert_to_numpy(selected).tolist()
    [[1.0, 2.0], [1.0, 1.0]]
    """
    supervised = ops.expand_dims(ops.cast(weights, "bool"), axis=-1)
    return ops.where(supervised, logits, ops.ones_like(logits))


def position_weights(sample_weight, values):
    """Broadcasts `sample_weight` to the shape of the per-position `values`.

    Missing trailing axes are added, so `(B,)` and `(B, 1)` weight whole examples and
    `(B, T)` single positions; `(B, T, 1)` is taken as `(B, T)`. Keras' own reduction
    would divide the sum over T positions by the sum of the B weights.

    Args:
        sample_weight: array or tensor.
        values: float tensor, one value per position.

    Returns:
        A tensor of the shape and dtype of `values`.

    Raises:
        ValueError: if the shapes do not broadcast.
    """
    weights = ops.convert_to_tensor(sample_weight, dtype=values.dtype)
    received, rank = tuple(weights.shape), len(values.shape)
    if len(received) == rank + 1 and received[-1] == 1:
        weights = ops.squeeze(weights, axis=-1)
    while len(weights.shape) < rank:
        weights = ops.expand_dims(weights, axis=-1)
    fits = len(weights.shape) == rank and all(
        w in (1, v) or None in (w, v)
        for w, v in zip(weights.shape, values.shape, strict=True)
    )
    if not fits:
        raise ValueError(
            "`sample_weight` must give one weight per example or per position, "
            f"that is, broadcast to {tuple(values.shape)} after trailing axes of 1 "
            f"are added. Received: sample_weight.shape={received}"
        )
    return weights * ops.ones_like(values)


def attached_mask(tensor, dtype="float32"):
    """The mask that Keras attached to `(..., V)`, as 0 and 1 of shape `(...)`.

    Ones if there is none.
    """
    probe_dtype = keras.backend.standardize_dtype(tensor.dtype)
    # The mask is 0 or 1, so the tensor need not be cast to read it.
    mask = _MaskProbe("mask_probe", reduction=None, dtype=probe_dtype)(tensor, tensor)
    return ops.cast(mask, dtype)


def mask_weights(y_pred, dtype, reduction):
    """The weights `(...)` that stand for the Keras mask of `y_pred`, `(..., V)`.

    0 where the mask excludes a position. Elsewhere 1, or, for a `reduction` that
    divides by the number of all positions, that number over the number of positions
    left, so that the mean runs over the latter, as in Keras.
    """
    mask = attached_mask(y_pred, dtype)
    if reduction in _MEANS_OVER_ALL_POSITIONS:
        mask = mask * ops.divide_no_nan(ops.sum(ops.ones_like(mask)), ops.sum(mask))
    return mask


class _MaskProbe(keras.losses.Loss):
    """Reads the Keras mask of a tensor as weights of 0 and 1, one per position.

    Where Keras stores a mask depends on the backend (JAX tracers take no attributes),
    and the function that reads it is private. A `Loss` receives the mask of its
    `y_pred` from Keras itself.
    """

    def call(self, y_true, y_pred):
        return ops.ones_like(y_pred[..., 0])
