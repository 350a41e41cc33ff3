"""Checks labels and their weights before a compiled step gets them.

In a compiled step an array is read beyond its end without a word, so a label that is no
class would train the student on another one.
"""

import math

import numpy as np
from keras import ops

_MOST_WEIGHT = 1e30  # of a batch: float32 holds sums of it


def checked_labels(y, logits_shape):
    """Labels of batch form as an array of integers, or of floats, of the right shape.

    Args:
        y: labels (B, K), or (B,) or (B, 1) for logits (B, V).
        logits_shape: (B, ..., V), the shape of the student's logits at the labels, with
            `None` where it is unknown.

    Raises:
        ValueError: another type or shape.
    """
    if isinstance(y, dict):
        raise ValueError(
            f"Labels must be one array of class ids. Received: a dict of {sorted(y)}"
        )
    y = np.asarray(y) if isinstance(y, (list, tuple)) else ops.convert_to_numpy(y)
    if y.dtype.kind not in "iuf":
        raise ValueError(
            "Labels must be class ids, whole numbers. Received: labels of type "
            f"{y.dtype} and shape {y.shape}"
        )
    *rows, classes = logits_shape[1:]
    expected = ("B", *("K" if size is None else size for size in rows))
    if y.ndim > 1 and classes not in (None, 1) and _is_one_hot(y, rows, classes):
        raise ValueError(
            f"Labels must be class ids of shape {_shown(expected)}. Received: labels "
            f"of shape {y.shape}, which look one-hot over the {classes} classes: pass "
            "`labels.argmax(-1)`"
        )
    if not _fits(y, rows):
        raise ValueError(
            f"The student's logits need labels of shape {_shown(expected)}, a class id "
            f"for each row of {classes} logits. Received: labels of shape {y.shape}"
            + (" (of one example? Data sets yield batches)" * (y.ndim == len(rows)))
        )
    return y


def _is_one_hot(y, rows, classes):
    return y.shape[-1] == classes and y.ndim == len(rows) + 2


def _fits(y, rows):
    """Whether labels have an entry for each row of logits, as far as this is known."""
    if y.ndim == 0:
        return False
    if None not in rows:
        return math.prod(y.shape[1:]) == math.prod(rows)
    return y.ndim == len(rows) + 1


def _shown(shape):
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"


def expect_classes(y, sample_weight, classes, names, read=True):
    """Checks weights, and that every label that has a weight is a class.

    Args:
        y: labels (B, ...).
        sample_weight: their weights, of the same shape.
        classes: V, the number of classes; `None` if unknown.
        names: B strings that name the records, or `None`.
        read: bool, which of the labels with a weight are read; all by default.

    Returns:
        The labels as whole numbers, 0 where a float without weight is none.

    Raises:
        ValueError: a weight that is negative or not finite, or weights whose sum is too
            large; a label with a weight that is no whole number from 0 to V - 1.
    """
    expect_weights("sample_weight", sample_weight, names)
    counts = (sample_weight > 0) & read
    with np.errstate(invalid="ignore"):
        bad = (y < 0) | ~np.isfinite(y) | (y != np.floor(y))
        bad = bad if classes is None else bad | (y >= classes)
    bad = bad & counts
    if bad.any():
        where = _first(bad)
        most = "V - 1" if classes is None else f"{classes - 1}"
        raise ValueError(
            f"Label {y[where]} at {where}{_of_record(names, where)} is no class: "
            f"classes are whole numbers from 0 to {most}. Its `sample_weight` is "
            f"{sample_weight[where]}; give ignored labels (-100, -1) the weight 0."
        )
    if y.dtype.kind != "f":
        return y
    return np.where(counts, y, 0).astype("int32")


def expect_weights(name, weights, names):
    """Raises a `ValueError` for weights that are negative, not finite, or too large.

    Args:
        name: what the weights are called, for the message.
        weights: array (B, ...).
        names: B strings that name the records, or `None`.
    """
    bad = ~np.isfinite(weights) | (weights < 0)
    if bad.any():
        where = _first(bad)
        raise ValueError(
            f"`{name}` must be finite and not negative. Received: "
            f"{weights[where]} at {where}{_of_record(names, where)}"
        )
    total = np.sum(weights, dtype="float64")
    if total > _MOST_WEIGHT:
        raise ValueError(
            "The weights of a batch must add up to less than "
            f"{_MOST_WEIGHT:g}, since float32 holds their sum. Received: `{name}` "
            f"with a sum of {total:g}"
        )


def _first(found):
    return tuple(int(i) for i in np.argwhere(found)[0])


def _of_record(names, where):
    return "" if names is None else f" of record {names[where[0]]}"
