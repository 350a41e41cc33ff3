"""Cross-entropy and energies of a batch, with the logits whole or never made.

Two ways to the same `HeadLoss`: `dense_terms` from logits (B, K, V), and `fused_terms`
from hidden states (B, K, H) through `keras_betakd.head_loss.fused`.
"""

import keras
from keras import ops

from keras_betakd.energies.masking import select_supervised
from keras_betakd.head_loss.fused import HeadLoss, fused_head_loss
from keras_betakd.objective import weighted_energy, weighted_sum


def dense_terms(
    student, teacher, labels, weights, log_beta, task_loss, energies, energy_weights
):
    """The terms from logits.

    Args:
        student, teacher: (B, K, V) logits.
        labels: (B, K), any where the weight is 0.
        weights: (B, K) row weights.
        log_beta: dict of log betas, broadcastable to (B, K), by the energies' names;
            `"task"` for the cross-entropy, if it has one.
        task_loss: a `keras.losses.Loss`, or takes labels and logits, returns (B, K).
        energies: dict of energies.
        energy_weights: dict of the weights of each energy, (B, K).

    Returns:
        A `HeadLoss` with values (B, K).
    """
    student = select_supervised(student, weights)
    teacher = select_supervised(teacher, weights)
    # Ignored labels may be no class at all (-100): any class will do there.
    labels = ops.where(weights != 0, labels, ops.zeros_like(labels))
    if isinstance(task_loss, keras.losses.Loss):
        task_loss = task_loss.call  # one value a label, not their mean
    task = task_loss(labels, ops.cast(student, "float32"))
    if "task" in log_beta:
        total = weighted_energy(task, log_beta["task"], weights)
    else:
        total = weighted_sum(task, weights)
    values = {
        name: energy.call(energy.target(teacher, labels), student)
        for name, energy in energies.items()
    }
    for name, value in values.items():
        total = total + weighted_energy(value, log_beta[name], energy_weights[name])
    best = ops.cast(ops.argmax(student, axis=-1), labels.dtype)
    correct = ops.cast(best == labels, "float32")
    return HeadLoss(total=total, task=task, energies=values, correct=correct)


def fused_terms(
    student,
    teacher,
    labels,
    weights,
    log_beta,
    heads,
    energies,
    energy_weights,
    gradients,
):
    """The terms from hidden states.

    Args:
        student, teacher: (B, K, H) hidden states.
        labels, weights, log_beta, energies, energy_weights: as for `dense_terms`.
        heads: the student's `HeadMatrix` and the teacher's, or a callable.
        gradients: whether the total will be differentiated.

    Returns:
        A `HeadLoss` with values (B, K).
    """
    shape = ops.shape(weights)
    pairs = [(weights, log_beta.get("task", 0.0))]
    pairs += [(energy_weights[name], log_beta[name]) for name in energies]
    coefficients = [w * ops.exp(ops.cast(f, "float32")) for w, f in pairs]
    flat = fused_head_loss(
        _rows(student),
        heads[0],
        _rows(teacher),
        heads[1],
        ops.reshape(labels, (-1,)),
        ops.stack([ops.reshape(c, (-1,)) for c in coefficients]),
        energies,
        gradients=gradients,
    )
    return HeadLoss(
        total=flat.total,
        task=ops.reshape(flat.task, shape),
        energies={k: ops.reshape(v, shape) for k, v in flat.energies.items()},
        correct=ops.reshape(flat.correct, shape),
    )


def image_logits_term(rows, heads, weights, log_beta, energy, fuses, gradients):
    """beta * l of an energy between logits at the image tokens, and its values.

    Args:
        rows: dict of `"student"` (B, N, H_s) and `"teacher"` (B, N, H_t).
        heads: of student and teacher; as for `fused_terms` if `fuses`.
        weights, log_beta: (B, N) and broadcastable to it.
        energy: an energy that needs no labels.
        fuses: whether the logits are never to be whole.
        gradients: whether the term will be differentiated.

    Returns:
        `(term, values)`, a scalar and (B, N).
    """
    shape = ops.shape(weights)
    if not fuses:
        logits = [
            select_supervised(head(rows[role]), weights)
            for role, head in zip(("student", "teacher"), heads, strict=True)
        ]
        values = energy.call(ops.stop_gradient(logits[1]), logits[0])
        return weighted_energy(values, log_beta, weights), values
    coefficients = ops.reshape(weights * ops.exp(log_beta), (-1,))
    flat = fused_head_loss(
        _rows(rows["student"]),
        heads[0],
        _rows(rows["teacher"]),
        heads[1],
        ops.zeros(ops.shape(coefficients), dtype="int32"),
        ops.stack([ops.zeros_like(coefficients), coefficients]),  # no label, no CE
        {"image": energy},
        gradients=gradients,
    )
    return flat.total, ops.reshape(flat.energies["image"], shape)


def _rows(x):
    return ops.reshape(x, (-1, x.shape[-1]))
