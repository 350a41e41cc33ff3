"""Soft weights of image tokens: how an example's weight is shared among them."""

from keras import ops

from keras_betakd.distillation.token_grids import resized, token_mask
from keras_betakd.models.attention import attention_name
from keras_betakd.objective import normalised


def features_for(energy):
    """The names of the teacher's `Features` that an energy's weights are made of."""
    if energy.token_weights == "uniform":
        return set()
    if energy.token_weights == "saliency":
        return {_saliency(energy)}
    return {"image_features"}


def _saliency(energy):
    return attention_name("prompt_saliency", (energy.saliency_layer,))


def token_weights(energy, teacher, student, kept):
    """The shares of the student's image tokens in their example's weight, unscaled.

    Args:
        energy: an `ImageTokenEnergy` whose weights are not uniform.
        teacher, student: the `Features` of the two models.
        kept: bool (B, P, T), the student's tokens that are compared.

    Returns:
        (B, P, T) float32, not negative and 0 where not `kept`: the teacher's weights,
        resized to the student's grid. Their greatest in an example is 1; where the
        teacher's are all 0, so that none is above another, all are 1.

    Raises:
        ValueError: a callable returns weights of another shape than the teacher's
            tokens.
    """
    weights = energy.token_weights
    if weights == "saliency":
        values = teacher.named(_saliency(energy))
    elif weights == "self_dissimilarity":
        values = self_dissimilarity(teacher)
    else:
        values = weights(teacher)
        if not ops.is_tensor(values):
            raise ValueError(
                "The function of `weights` must return a tensor (B, P, T). Received: "
                f"{type(values).__name__}"
            )
        expected = tuple(teacher.image_features.shape[:3])
        if len(values.shape) != 3 or values.shape[1:] != expected[1:]:
            raise ValueError(
                "The weights of image tokens must be (B, P, T), one for each of the "
                f"teacher's image tokens. Received: shape={tuple(values.shape)}, "
                f"tokens of shape {expected}"
            )
    values = ops.stop_gradient(ops.cast(values, "float32"))
    values = ops.where(values < 0, float("nan"), values)  # no weight
    count = kept.shape[2] if student.grids is None else ops.shape(kept)[2]
    values = resized(values[..., None], count, teacher.grids, student.grids)[..., 0]
    values = ops.where(kept, values, 0.0)
    # Over the greatest and not over the sum: equal weights are exactly 1, as uniform
    # ones are, and small ones do not vanish.
    greatest = ops.max(values, axis=(1, 2), keepdims=True)
    shares = values / ops.where(greatest == 0, 1.0, greatest)
    return ops.where(greatest == 0, ops.cast(kept, "float32"), shares)


def self_dissimilarity(features):
    """1 minus the mean cosine of an image token to all tokens of its image.

    Args:
        features: `Features` with `image_features`.

    Returns:
        (B, P, T), between 0 and 2; any number at padding.
    """
    tokens = ops.cast(features.image_features, "float32")
    real = token_mask(features.grids, tokens)[..., None]
    tokens = ops.where(real, tokens, 0.0)
    squares = ops.sum(ops.square(tokens), axis=-1, keepdims=True)
    units = tokens * ops.rsqrt(ops.maximum(squares, 1e-24))
    count = ops.sum(ops.cast(real, "float32"), axis=2, keepdims=True)
    mean = ops.sum(units, axis=2, keepdims=True) / ops.maximum(count, 1.0)
    return ops.maximum(1.0 - ops.sum(units * mean, axis=-1), 0.0)


def spread(row_weights, shares):
    """Weights (B, N): an example's weight, divided among its tokens by their shares.

    Examples without such a token are left out; the weights of the others add up to one.

    Args:
        row_weights: (B, K).
        shares: (B, N), a bool mask or numbers of which the greatest in each example is
            1, or 0 for an example without a token.
    """
    shares = ops.cast(shares, "float32")
    total = ops.sum(shares, axis=1, keepdims=True)
    example = ops.sum(row_weights, axis=1, keepdims=True)
    return normalised(example * shares / ops.maximum(total, 1.0))
