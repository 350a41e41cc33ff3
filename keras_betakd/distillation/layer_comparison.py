"""Compares inner layers of teacher and student, which energies name."""

from keras import ops

from keras_betakd.distillation.outputs import as_rows
from keras_betakd.distillation.token_weights import spread
from keras_betakd.energies.base import shapes_agree


def set_widths(energy, views):
    """Tells an energy the widths of the two models' features, where they are known."""
    if energy.features != "layers":
        energy.set_widths(*(view.hidden_dim for view in views))
        return
    names = energy.student_layer, energy.teacher_layer
    widths = [v.layer_width(name) for v, name in zip(views, names, strict=True)]
    if None not in widths:
        energy.set_widths(*widths)


def compare_layers(energy, student, teacher, row_weights):
    """Compares the outputs of an inner layer of each model.

    Args:
        energy: a `FeatureEnergy` with `teacher_layer` and `student_layer`.
        student, teacher: the `Features` of the two models.
        row_weights: (B, K) row weights of the answer rows that are compared.

    Returns:
        Values (B, N), and their weights, which add up to one. Where the layers have a
        position for each answer row, N = K, these are the row weights.
    """
    names = energy.student_layer, energy.teacher_layer
    ours, theirs = student.layers[names[0]], teacher.layers[names[1]]
    if energy.align == "pool":
        ours, theirs = (_mean_of_rows(as_rows(x), row_weights) for x in (ours, theirs))
    elif not shapes_agree(tuple(theirs.shape[1:-1]), tuple(ours.shape[1:-1])):
        raise ValueError(
            f"The energy '{energy.name}' compares layers position by position, which "
            f"have other positions: the teacher's '{names[1]}' returns "
            f"{tuple(theirs.shape)}, the student's '{names[0]}' {tuple(ours.shape)}. "
            'Name layers of one resolution, or compare their means by `align="pool"`.'
        )
    else:
        ours, theirs = as_rows(ours), as_rows(theirs)
    value = energy.call(theirs, ours)
    return value, _of_positions(row_weights, value)


def _of_positions(row_weights, values):
    """`row_weights` where values (B, N) have a row for each, else each example's."""
    if _have_rows(values, row_weights):
        return row_weights
    return spread(row_weights, ops.ones_like(values, dtype="bool"))


def _have_rows(values, row_weights):
    """Whether (B, N, ...) has a position for each answer row, (B, K)."""
    sizes = values.shape[1], row_weights.shape[1]
    if (sizes[0] is None) != (sizes[1] is None):
        raise ValueError(
            "It is not known before a batch whether a layer that is compared has a "
            f"position for each label. Received: {sizes[0]} positions, {sizes[1]} "
            "labels. Give the model's inputs a known size, `keras.Input((size, ...))`."
        )
    return sizes[0] == sizes[1]


def _mean_of_rows(values, row_weights):
    """(B, N, D) to (B, 1, D): the mean over rows with a weight, or all positions."""
    values = ops.cast(values, "float32")
    if not _have_rows(values, row_weights):
        return ops.mean(values, axis=1, keepdims=True)
    counted = (row_weights != 0)[..., None]
    count = ops.sum(ops.cast(counted, "float32"), axis=1, keepdims=True)
    total = ops.sum(ops.where(counted, values, 0.0), axis=1, keepdims=True)
    return total / ops.maximum(count, 1.0)
