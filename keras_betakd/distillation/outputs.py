"""`DistillationOutputs`: what the distiller's `call` hands to `compute_loss`."""

import dataclasses
import math
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_betakd.betas.teacher_features import (
    UNCERTAINTY_WIDTH,
    TeacherOutputs,
    uncertainty_of,
)
from keras_betakd.head_loss.logit_statistics import logit_statistics
from keras_betakd.head_loss.tiles import rows_per_tile
from keras_betakd.objective import normalised


class DistillationOutputs(NamedTuple):
    """What `call` computes of a batch; `compute_loss` makes the loss of it.

    A `NamedTuple`, since on JAX it leaves `value_and_grad` as an auxiliary output, and
    `keras.tree` has no public way to register another class.

    Attributes:
        student: (B, K, V) logits, or (B, K, H) hidden states for the fused head.
        teachers: dict of the same of each teacher, by its name.
        log_beta: dict of the log betas by the names of the energies, and `"task"` where
            the cross-entropy has a beta.
        weights: dict of row weights (B, N) by `"answers"`, `"task"` and the names of
            the energies; all zero once the batch is found not to be finite. Those of
            `"answers"` are the rows whose labels have a weight, and add up to one;
            those of `"task"` are these times the task weight.
        finite: dict of bool (B, K) by the teachers' names, where its output is finite.
        feature_values: dict of the values (B, N) of energies between features.
        image_rows: dict of the `ImageRows` of energies between logits at image tokens.
    """

    student: Any
    teachers: dict
    log_beta: dict
    weights: dict
    finite: dict
    feature_values: dict
    image_rows: dict


def label_weights(inputs, student):
    """The weight of each label, (B, K): `sample_weight` times the attached Keras mask.

    Args:
        inputs: the batch's `x`, with its `"sample_weight"` if it has one.
        student: the student's `ModelOutputs`.
    """
    outputs = student.rows if student.logits is None else student.logits
    shape = ops.shape(outputs)[:2]
    weights = ops.ones(shape)
    for factor in (inputs.get("sample_weight"), student.mask):
        if factor is not None:
            weights = weights * ops.reshape(factor, shape)
    return weights


def task_weights(inputs, answers):
    """The row weights of the cross-entropy, (B, K): those of the answers times a.

    They are not brought to a sum of one again: with a share s of the examples labelled,
    the cross-entropy counts s times its mean, as in the mean over all examples.

    Args:
        inputs: the batch's `x`, with its `"task_weight"`, a, if it has one.
        answers: (B, K), the row weights of the answers.
    """
    given = inputs.get("task_weight")
    if given is None:
        return answers
    # (B, K), or one for each example.
    given = ops.reshape(ops.cast(given, "float32"), (ops.shape(answers)[0], -1))
    return ops.reshape(answers * given, ops.shape(answers))


def mean_weights(outputs):
    """The row weights by which each term is averaged: `weights`, each adding up to one.

    Args:
        outputs: the `DistillationOutputs`.
    """
    return {**outputs.weights, "task": normalised(outputs.weights["task"])}


def without_gradient(outputs):
    """A dataclass of tensors, through which no gradient flows back."""
    known = {k: v for k, v in vars(outputs).items() if v is not None}
    cut = {
        k: without_gradient(v)
        if dataclasses.is_dataclass(v)
        else keras.tree.map_structure(ops.stop_gradient, v)
        for k, v in known.items()
    }
    return dataclasses.replace(outputs, **cut)


def beta_inputs(teacher, weights, uncertainty=None):
    """The `TeacherOutputs` that predicted betas read, of the teacher's `ModelOutputs`.

    Args:
        teacher: the teacher's `ModelOutputs`.
        weights: (B, K), weights of the rows that are compared.
        uncertainty: (B, K, 3), where a beta reads it and there are no logits.
    """
    return TeacherOutputs(
        weights=weights,
        logits=teacher.logits,
        hidden_states=teacher.hidden_states,
        padding_mask=teacher.padding_mask,
        rows=teacher.rows,
        hidden_mean=teacher.hidden_mean,
        uncertainty=uncertainty,
    )


def tiled_uncertainty(teacher, weights, head, head_shape):
    """`uncertainty_of` the teacher's logits (B, K, 3), made a few rows at a time.

    Args:
        teacher: the teacher's `ModelOutputs`, without logits.
        weights: (B, K), weights of the rows that are compared.
        head: the teacher's LM head.
        head_shape: (V, H) of the student's, by which tiles are sized.
    """
    return logit_statistics(
        uncertainty_of,
        UNCERTAINTY_WIDTH,
        teacher.head_input,
        head.matrix() or head,
        weights != 0,
        rows_per_tile(*head_shape),
    )


def as_rows(logits):
    """(B, ..., V) of any rank as (B, K, V)."""
    shape, inner = ops.shape(logits), logits.shape[1:-1]
    if len(shape) == 3:
        return logits
    # Not -1 where it is known: TensorFlow would forget it.
    count = -1 if None in inner else math.prod(inner)
    return ops.reshape(logits, (shape[0], count, shape[-1]))
