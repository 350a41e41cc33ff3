"""Image tokens of both models: which count, and the teacher's on the student's grid."""

import math

from keras import ops


def present_in_both(student, teacher):
    """Images that both models take: bool (B, P).

    Args:
        student, teacher: the `Features` of the two models.

    Raises:
        ValueError: the models take different numbers of images a record.
    """
    ours, theirs = student.present, teacher.present
    if None not in (ours.shape[1], theirs.shape[1]) and ours.shape != theirs.shape:
        raise ValueError(
            "Teacher and student must take the same number of images a record for "
            "their images to be compared (`max_images_per_prompt` of their "
            f"preprocessors). Received: student={ours.shape[1]}, "
            f"teacher={theirs.shape[1]}"
        )
    return ops.logical_and(ours, theirs)


def on_students_grid(theirs, ours, student, teacher):
    """What the teacher has at its image tokens, (B, P, T, D), for the student's.

    Args:
        theirs, ours: what the teacher and the student have there.
        student, teacher: the `Features` of the two models.
    """
    count = ours.shape[2] if student.grids is None else ops.shape(ours)[2]
    return resized(theirs, count, teacher.grids, student.grids)


def kept_tokens(present, tokens, features):
    """The tokens (B, P, T, ...) of images that both models take: bool (B, P, T)."""
    return ops.logical_and(present[..., None], token_mask(features.grids, tokens))


def resized(tokens, count, grids=None, new_grids=None):
    """Image tokens on another grid, bilinearly, smoothed where it is coarser.

    Args:
        tokens: (B, P, T, D), the tokens of P images, rows of their grid in turn.
        count: T', how many tokens there should be for each image.
        grids: int (B, P, 2), rows and columns of the tokens of each image, of which
            those beyond are padding; `None` where all images have one square grid.
        new_grids: the same of the grids to resize to.

    Returns:
        (B, P, T', D); `tokens` itself if both have the same square grid.

    Raises:
        ValueError: grids that are square by `None` have no whole number of rows.
    """
    if grids is None and new_grids is None:
        return _resized_square(tokens, count)
    weights = _interpolation(
        _grids_of(grids, tokens.shape[2]),
        ops.shape(tokens)[2],
        _grids_of(new_grids, count),
        count,
    )
    # Padding may hold any values.
    real = token_mask(grids, tokens)
    tokens = ops.where(real[..., None], ops.cast(tokens, "float32"), 0.0)
    return ops.matmul(weights, tokens)


def token_mask(grids, tokens):
    """Which of the tokens (B, P, T, ...) are real: bool (B or 1, P or 1, T)."""
    number = ops.arange(ops.shape(tokens)[2], dtype="int32")[None, None]
    if grids is None:
        return ops.ones_like(number, dtype="bool")
    return number < ops.prod(ops.cast(grids, "int32"), axis=-1, keepdims=True)


def token_counts(grids, tokens):
    """The number of real tokens of each image: float32, (B, P) or (1, 1)."""
    if grids is None:
        return ops.cast(ops.reshape(ops.shape(tokens)[2], (1, 1)), "float32")
    return ops.cast(ops.prod(ops.cast(grids, "int32"), axis=-1), "float32")


def _resized_square(tokens, count):
    before = tokens.shape[2]
    if before == count:
        return tokens
    sides = [_side(n) for n in (before, count)]
    shape, width = ops.shape(tokens), tokens.shape[-1]
    grid = ops.reshape(ops.cast(tokens, "float32"), (-1, sides[0], sides[0], width))
    grid = ops.image.resize(
        grid, (sides[1], sides[1]), antialias=True, data_format="channels_last"
    )
    return ops.reshape(grid, (shape[0], shape[1], count, width))


def _side(count):
    side = math.isqrt(count)
    if side**2 != count:
        raise ValueError(
            "Image tokens can only be resized between square grids, or grids that are "
            f'known; use align="pool" for others. Received: {count} tokens of an image'
        )
    return side


def _grids_of(grids, count):
    if grids is not None:
        return ops.cast(grids, "int32")
    return ops.full((1, 1, 2), _side(count), dtype="int32")


def _interpolation(grids, count, new_grids, new_count):
    """The weight of each token in each new one: (B, P, T', T), rows add up to 1."""
    total = 1.0
    old, new = ops.arange(count, dtype="int32"), ops.arange(new_count, dtype="int32")
    for axis in (0, 1):
        sizes = [ops.maximum(g[..., axis : axis + 1], 1) for g in (grids, new_grids)]
        # Rows of `number // columns`, columns of `number % columns`.
        columns = [ops.maximum(g[..., 1:2], 1) for g in (grids, new_grids)]
        place, new_place = (
            number // width if axis == 0 else number % width
            for number, width in zip((old, new), columns, strict=True)
        )
        total = total * _triangle(place, sizes[0], new_place, sizes[1])
    real = old < ops.prod(ops.maximum(grids, 1), axis=-1, keepdims=True)
    total = ops.where(real[..., None, :], total, 0.0)
    return total / ops.maximum(ops.sum(total, axis=-1, keepdims=True), 1e-6)


def _triangle(place, size, new_place, new_size):
    """Bilinear weights along one axis, with centres of tokens at halves.

    Args:
        place: int (B, P, T), row or column of each token; `size`: how many there are.
        new_place: int (B, P, T'), the same of the new ones, of `new_size`.
    """
    size, new_size = (ops.cast(n, "float32") for n in (size, new_size))
    scale = size / new_size
    centre = (ops.cast(new_place, "float32") + 0.5) * scale - 0.5
    distance = ops.abs(centre[..., :, None] - ops.cast(place, "float32")[..., None, :])
    # A coarser grid takes the mean of all it covers.
    reach = ops.maximum(scale, 1.0)[..., None]
    return ops.maximum(1.0 - distance / reach, 0.0)
