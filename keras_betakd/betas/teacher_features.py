"""Features h(x) of the teacher, from which a network predicts beta.

The teacher is frozen and no gradient flows through the features.
"""

import dataclasses
import functools
from typing import Any

from keras import ops

UNCERTAINTY_WIDTH = 3
NO_HIDDEN_STATES = (
    'features="hidden_states" needs a teacher whose hidden states are known: a '
    "keras-hub CausalLM, with batches in the answer-position form. Here the teacher "
    'gives logits only. Use features="uncertainty", a callable, or a `TaskBeta`.'
)


@dataclasses.dataclass(frozen=True)
class TeacherOutputs:
    """The teacher's outputs for a batch: what a beta's callables are given.

    These are `features` of a predicted beta, and `row_weights`.

    Attributes:
        weights: (B, K), the row weights: zero where nothing is supervised.
        logits: (B, K, V), at the answer rows; for `row_weights` alone they are not
            made, and may be `None`.
        hidden_states: (B, T, H), the last hidden states at all positions; `None` for a
            model whose layers are not known.
        padding_mask: (B, T), true where the position is not padding, or `None`.
        rows: (B, K, H), the hidden states at the answer rows, or `None`.
        hidden_mean: (B, H), the mean of the hidden states over the positions that are
            not padding, of a teacher whose hidden states are not stored
            (`CachedTeacher`), or `None`.
        uncertainty: (B, K, 3), entropy in nats, top probability and its margin over the
            second at the answer rows. A distiller gives it to every callable.
    """

    weights: Any
    logits: Any = None
    hidden_states: Any = None
    padding_mask: Any = None
    rows: Any = None
    hidden_mean: Any = None
    uncertainty: Any = None


def expect_hidden_states(teacher_view):
    """Returns the view; raises unless it can give hidden states."""
    if not teacher_view.sees_hidden_states:
        raise ValueError(NO_HIDDEN_STATES)
    return teacher_view


def hidden_features(teacher, per_token=False):
    """Hidden states of the teacher: (B, H), or (B, K, H) if `per_token`.

    Per example, their mean over the positions that are not padding.
    """
    if per_token and teacher.rows is not None:
        return ops.cast(teacher.rows, "float32")
    if teacher.hidden_mean is not None and not per_token:
        return ops.cast(teacher.hidden_mean, "float32")
    if teacher.hidden_states is None:
        raise ValueError(NO_HIDDEN_STATES)
    hidden = ops.cast(teacher.hidden_states, "float32")
    return _masked_mean(hidden, teacher.padding_mask)


def uncertainty_of(logits):
    """Entropy in nats, top probability and its margin over the second: (..., 3).

    Args:
        logits: (..., V), with V at least 2.
    """
    logits = ops.cast(logits, "float32")
    logits = logits - ops.max(logits, axis=-1, keepdims=True)
    exps = ops.exp(logits)
    total = ops.sum(exps, axis=-1)
    # Selected: 0 times -inf, the logit of an excluded class, is NaN.
    mean = ops.sum(exps * ops.where(exps > 0, logits, 0.0), axis=-1) / total
    entropy = ops.log(total) - mean
    best, second = ops.unstack(ops.top_k(exps, 2)[0] / total[..., None], axis=-1)
    return ops.stack([entropy, best, best - second], axis=-1)


def uncertainty_features(teacher, per_token=False):
    """Uncertainty of the teacher: (B, 3), or (B, K, 3) if `per_token`.

    `uncertainty_of` each row; per example, their mean over the supervised rows.
    """
    features = teacher.uncertainty
    if features is None:
        features = uncertainty_of(teacher.logits)
    if per_token:
        return features
    return _masked_mean(features, teacher.weights != 0)


def _masked_mean(values, mask):
    """The mean over axis 1 where the mask is true: (B, T, F), (B, T) to (B, F)."""
    mask = ops.cast(mask, "float32")[..., None]
    count = ops.maximum(ops.sum(mask, axis=1), 1.0)
    # Selected and not only multiplied: masked positions may hold NaN.
    return ops.sum(ops.where(mask > 0, values, 0.0), axis=1) / count


FEATURES = {
    "hidden_states": hidden_features,
    "uncertainty": uncertainty_features,
}


def teacher_features(features):
    """The function `(teacher, per_token)` -> features of a name or a callable."""
    if callable(features):
        return functools.partial(_features_by, features)
    if features not in FEATURES:
        raise ValueError(
            f"`features` must be one of {sorted(FEATURES)} or a callable that takes a "
            f"`TeacherOutputs`. Received: features={features}"
        )
    return FEATURES[features]


def _features_by(function, teacher, per_token):
    """What a callable returns, if it is what a beta of its kind reads."""
    features, rows = function(teacher), tuple(teacher.weights.shape[: 1 + per_token])
    shape = tuple(getattr(features, "shape", ()))
    known = zip(shape, rows, strict=False)
    fits = len(shape) == len(rows) + 1 and shape[-1] != 0
    if not fits or any(None not in pair and pair[0] != pair[1] for pair in known):
        form = "(B, K, F)" if per_token else "(B, F)"
        raise ValueError(
            f"`features` must return a tensor of {form}, numbers for each "
            f"{'answer row' if per_token else 'example'}; here {form[:-4]}) is {rows}. "
            f"Received: {type(features).__name__} of shape {shape}"
        )
    return ops.cast(features, "float32")
