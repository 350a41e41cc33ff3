"""Compares the attention among the tokens of an image, without its outliers."""

from keras import ops

from keras_betakd.distillation.token_grids import (
    kept_tokens,
    on_students_grid,
    present_in_both,
)


def compare_image_attention(energy, theirs, ours, teacher, student):
    """The energies of the images of a batch, added up over pairs of decoder blocks.

    Args:
        energy: an `ImageAttentionEnergy`.
        theirs, ours: the attention of each pair, lists of (B, P, T, T), queries by
            keys, of the teacher and of the student.
        teacher, student: the `Features` of the two models.

    Returns:
        `(values, mask)`: (B, P), and bool (B, P), true at images that both models take,
        and of which something is left to compare in each pair.
    """
    present = present_in_both(student, teacher)
    tokens = kept_tokens(present, ours[0], student)
    both = tokens[..., :, None] & tokens[..., None, :]
    total, mask = 0.0, present
    for their_map, our_map in zip(theirs, ours, strict=True):
        their_map = _resized_map(their_map, our_map, student, teacher)
        kept = _kept_entries(their_map, both) & _kept_entries(our_map, both)
        means = [_mean_of_queries(x, kept) for x in (their_map, our_map)]
        total = total + energy.call(*means)
        mask = mask & ops.any(kept, axis=(2, 3))
    return total, mask


def _resized_map(theirs, ours, student, teacher):
    """The teacher's attention on the student's grid, by queries and then by keys."""
    for _ in range(2):
        theirs = on_students_grid(theirs, ours, student, teacher)
        theirs = ops.swapaxes(theirs, 2, 3)
    return theirs


def _kept_entries(attention, both):
    """Where attention is neither an outlier nor 0: bool (B, P, T, T), no gradient.

    NaN is kept, so that it is found in the value.

    Args:
        attention: (B, P, T, T).
        both: bool of that shape, true where query and key are tokens of an image.
    """
    x = ops.where(both, ops.stop_gradient(attention), 0.0)
    # Of any scale, since the squares of small shares would vanish.
    largest = _over_map(ops.max, x)
    x = x / ops.where(largest == 0, 1.0, largest)
    count = _over_map(ops.sum, ops.cast(both, x.dtype))
    mean = _over_map(ops.sum, x) / ops.maximum(count, 1.0)
    square = ops.where(both, ops.square(x - mean), 0.0)
    variance = _over_map(ops.sum, square) / ops.maximum(count - 1.0, 1.0)
    outlier = x > mean + ops.sqrt(variance)
    return both & ~outlier & (x != 0)


def _over_map(reduce, values):
    return reduce(values, axis=(2, 3), keepdims=True)


def _mean_of_queries(attention, kept):
    """The mean over the kept queries of each key, 0 without any: (B, P, T)."""
    count = ops.sum(ops.cast(kept, attention.dtype), axis=2)
    total = ops.sum(ops.where(kept, attention, 0.0), axis=2)
    return total / ops.maximum(count, 1.0)
