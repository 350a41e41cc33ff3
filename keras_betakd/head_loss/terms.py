"""The loss terms of a batch: cross-entropy and energies, weighted and added up.

`dense_terms` computes them from full logits (B, K, V), `fused_terms` from hidden states
(B, K, H) through `keras_betakd.head_loss.fused`; both give the same `HeadLoss`.
`batch_terms` chooses between them and adds the energies of features and of image
tokens.
"""

import dataclasses
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_betakd.energies.masking import select_supervised
from keras_betakd.head_loss.fused import (
    Compared,
    HeadLoss,
    fused_head_loss,
    fused_losses,
)
from keras_betakd.objective import weighted_energy

_NAN = float("nan")


@dataclasses.dataclass(frozen=True)
class AnswerRows:
    """Student, teachers and labels at the answer rows of a batch.

    Attributes:
        student: (B, K, V) logits, or (B, K, H) the inputs of the LM head.
        teachers: dict of the same of each teacher, by its name.
        labels: (B, K) class ids, any where the weight is 0.
    """

    student: Any
    teachers: dict
    labels: Any


class ImageRows(NamedTuple):
    """Student and teacher at the image tokens of a batch.

    A `NamedTuple`, since it leaves the distiller's `call`, and a dataclass does not
    leave a compiled function on JAX.

    Attributes:
        student, teacher: (B, N, H) hidden states.
    """

    student: Any
    teacher: Any


@dataclasses.dataclass(frozen=True)
class Weighting:
    """How much each row counts in each term, and each term in the total.

    Attributes:
        weights: dict of row weights (B, N), by `"answers"` (all supervised rows),
            `"task"` (those of them with a label, times the task weight) and the names
            of the energies.
        log_beta: dict of log betas, broadcastable to the weights, by the same names;
            without `"task"` where the cross-entropy has no beta.
    """

    weights: dict
    log_beta: dict

    def of(self, name):
        """`(weights, log_beta)` of a term; a term without beta has log beta 0."""
        return self.weights[name], self.log_beta.get(name, 0.0)


@dataclasses.dataclass(frozen=True)
class TeacherHead:
    """The LM head of a teacher, and the energies that compare the student with it.

    Attributes:
        head: callable, (..., H) to (..., V); in the fused head a `HeadMatrix`, where it
            has one.
        answer: the head for its answer rows, where that is another: the identity if
            `AnswerRows` holds its logits.
        energies: dict of these energies.
    """

    head: Any
    answer: Any
    energies: dict


@dataclasses.dataclass(frozen=True)
class Heads:
    """The LM heads that make logits of the rows of student and teachers.

    Attributes:
        student: callable, (..., H) to (..., V); in the fused head a `HeadMatrix`.
        teachers: dict of the `TeacherHead` of each teacher, by its name.
        fused: whether the heads run fused with the losses.
    """

    student: Any
    teachers: dict
    fused: bool

    @property
    def energies(self):
        """Dict of the energies of all teachers."""
        teachers = self.teachers.values()
        return {name: e for teacher in teachers for name, e in teacher.energies.items()}


def batch_terms(
    answer,
    feature_values,
    image_rows,
    weighting,
    heads,
    task_loss,
    gradients,
):
    """Computes every term of a batch but the -(d / 2) log beta, and their sum.

    Args:
        answer: the `AnswerRows`.
        feature_values: dict of values (B, N) of the energies between features.
        image_rows: dict of the `ImageRows` of the energies between logits at image
            tokens.
        weighting: the `Weighting` of all terms.
        heads: the `Heads`, with all energies.
        task_loss: a `keras.losses.Loss`, or a function that takes labels and logits and
            returns (B, K). The fused head computes the cross-entropy.
        gradients: whether the total will be differentiated.

    Returns:
        A `HeadLoss` with values (B, N) of every energy.
    """
    if heads.fused:
        terms = fused_terms(answer, weighting, heads, gradients)
    else:
        terms = dense_terms(answer, weighting, heads.teachers, task_loss)
    total, values = terms.total, dict(feature_values)
    for name, value in feature_values.items():
        weights, log_beta = weighting.of(name)
        total = total + weighted_energy(value, log_beta, weights)
    for teacher in heads.teachers.values():
        pair = heads.student, teacher.head
        for name, energy in teacher.energies.items():
            if name in image_rows:
                rows, of_name = image_rows[name], weighting.of(name)
                term, values[name] = image_logits_term(
                    rows, *of_name, energy, pair, heads.fused, gradients
                )
                total = total + term
    return dataclasses.replace(terms, total=total, energies=terms.energies | values)


def _between_answers(energies):
    """Those of a dict of energies that compare logits at the answer rows."""
    return {name: e for name, e in energies.items() if e.features is None}


def dense_terms(answer, weighting, teachers, task_loss):
    """Computes cross-entropy and energies from full logits.

    Args:
        answer: `AnswerRows` of logits (B, K, V).
        weighting: the `Weighting` of the cross-entropy and the energies.
        teachers: dict of the `TeacherHead` of each teacher, by its name.
        task_loss: a `keras.losses.Loss`, or a function that takes labels and logits and
            returns (B, K).

    Returns:
        A `HeadLoss` with values (B, K).
    """
    answers = weighting.weights["answers"]
    student = select_supervised(answer.student, answers)
    # Ignored labels may be no class at all (-100): any class will do there. Elsewhere
    # some backends would take another class in silence.
    classes, counts = student.shape[-1], answers != 0
    is_class = ops.logical_and(answer.labels >= 0, answer.labels < classes)
    labels = ops.where(
        ops.logical_and(counts, is_class), answer.labels, ops.zeros_like(answer.labels)
    )
    unknown = ops.logical_and(counts, ops.logical_not(is_class))
    if isinstance(task_loss, keras.losses.Loss):
        task_loss = task_loss.call  # one value a label, not their mean
    task = ops.where(unknown, _NAN, task_loss(labels, ops.cast(student, "float32")))
    weights, log_beta = weighting.of("task")
    total = weighted_energy(task, log_beta, weights)
    values = {}
    for teacher_name, teacher in teachers.items():
        rows = select_supervised(answer.teachers[teacher_name], answers)
        for name, energy in _between_answers(teacher.energies).items():
            value = energy.call(energy.target(rows, labels), student)
            if energy.needs_labels:
                value = ops.where(unknown, _NAN, value)
            values[name] = value
            weights, log_beta = weighting.of(name)
            total = total + weighted_energy(value, log_beta, weights)
    best = ops.cast(ops.argmax(student, axis=-1), labels.dtype)
    right = ops.logical_and(best == labels, ops.logical_not(unknown))
    correct = ops.cast(right, "float32")
    return HeadLoss(total=total, task=task, energies=values, correct=correct)


def fused_terms(answer, weighting, heads, gradients):
    """Computes cross-entropy and energies from hidden states, without full logits.

    Args:
        answer: `AnswerRows` of hidden states (B, K, H).
        weighting: as for `dense_terms`.
        heads: the `Heads`.
        gradients: whether the total will be differentiated.

    Returns:
        A `HeadLoss` with values (B, K).
    """
    shape = ops.shape(answer.labels)
    teachers = [
        Compared(_rows(answer.teachers[name]), x.answer, _between_answers(x.energies))
        for name, x in heads.teachers.items()
    ]
    names = ("task", *(name for teacher in teachers for name in teacher.energies))
    coefficients = [_coefficients(*weighting.of(name)) for name in names]
    flat = fused_losses(
        _rows(answer.student),
        heads.student,
        # The logits of a teacher whose features alone are compared are not needed.
        [teacher for teacher in teachers if teacher.energies],
        ops.reshape(answer.labels, (-1,)),
        ops.stack(coefficients),
        gradients=gradients,
    )
    return HeadLoss(
        total=flat.total,
        task=ops.reshape(flat.task, shape),
        energies={k: ops.reshape(v, shape) for k, v in flat.energies.items()},
        correct=ops.reshape(flat.correct, shape),
    )


def image_logits_term(rows, weights, log_beta, energy, heads, fused, gradients):
    """Computes beta * l of an energy between the logits at image tokens.

    Args:
        rows: the `ImageRows`.
        weights, log_beta: (B, N) and broadcastable to it.
        energy: an energy that needs no labels.
        heads: the heads of student and teacher.
        fused: whether they run fused with the loss.
        gradients: whether the term will be differentiated.

    Returns:
        `(term, values)`, a scalar and (B, N).
    """
    if not fused:
        student = select_supervised(heads[0](rows.student), weights)
        teacher = select_supervised(heads[1](rows.teacher), weights)
        values = energy.call(ops.stop_gradient(teacher), student)
        return weighted_energy(values, log_beta, weights), values
    coefficients = _coefficients(weights, log_beta)
    flat = fused_head_loss(
        _rows(rows.student),
        heads[0],
        _rows(rows.teacher),
        heads[1],
        ops.zeros(ops.shape(coefficients), dtype="int32"),
        ops.stack([ops.zeros_like(coefficients), coefficients]),  # no label, no CE
        {"image": energy},
        gradients=gradients,
    )
    values = ops.reshape(flat.energies["image"], ops.shape(weights))
    return flat.total, values


def _coefficients(weights, log_beta):
    """weight * beta of each row, (B * N,)."""
    return ops.reshape(weights * ops.exp(ops.cast(log_beta, "float32")), (-1,))


def _rows(x):
    return ops.reshape(x, (-1, x.shape[-1]))
