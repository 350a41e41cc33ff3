"""Sample weights and Keras masks: which positions of an energy count."""

import keras
from keras import ops

_MEANS_OVER_ALL_POSITIONS = ("mean", "sum_over_batch_size")


def position_weights(sample_weight, values):
    """Broadcasts `sample_weight` to the shape of the per-position `values`.

    Missing trailing axes are added, so `(B,)` and `(B, 1)` weigh whole examples and
    `(B, T)` single positions; `(B, T, 1)` is taken as `(B, T)`. Keras' own reduction
    would divide the sum over T positions by the B weights it was given.
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


def select_supervised(logits, weights):
    """Replaces the logits of positions that carry no weight by a harmless constant.

    A product with a zero weight is no mask: 0 * NaN is NaN, forward and backward.
    Selecting before any arithmetic leaves padding without influence on the value and
    with a gradient of exactly 0, whatever it contains.

    Args:
        logits: tensor of shape `(..., V)`, for example `(B, K, V)`.
        weights: tensor of shape `(...)`, for example `(B, K)`; the positions where
            it is zero (or False) are replaced.

    Returns:
        A tensor like `logits`, with a row of ones (a uniform distribution, read as
        logits or as probabilities) in every position without weight.
    """
    supervised = ops.expand_dims(ops.cast(weights, "bool"), axis=-1)
    return ops.where(supervised, logits, ops.ones_like(logits))


class _MaskProbe(keras.losses.Loss):
    """Reads the Keras mask of a tensor as 0/1 weights, one per position.

    Where a mask is stored depends on the backend (JAX tracers take no attributes)
    and the function that finds it is private; a `Loss` is handed it by Keras itself.
    """

    def call(self, y_true, y_pred):
        return ops.ones_like(y_pred[..., 0])


def attached_mask(tensor, dtype="float32"):
    """The mask that Keras attached to `(..., V)`, as 0/1 of shape `(...)`; or ones."""
    probe_dtype = keras.backend.standardize_dtype(tensor.dtype)
    # The mask is 0 or 1, so the tensor need not be cast to read it.
    mask = _MaskProbe("mask_probe", reduction=None, dtype=probe_dtype)(tensor, tensor)
    return ops.cast(mask, dtype)


def mask_weights(y_pred, dtype, reduction):
    mask = attached_mask(y_pred, dtype)
    if reduction in _MEANS_OVER_ALL_POSITIONS:
        # As in Keras: these divide by every position, so the valid ones are scaled up.
        mask = mask * ops.divide_no_nan(ops.sum(ops.ones_like(mask)), ops.sum(mask))
    return mask
