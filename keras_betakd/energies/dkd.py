"""Decoupled distillation: the label, and what else the teacher finds likely."""

import math

import keras
from keras import ops

from keras_betakd.energies.base import checked_number
from keras_betakd.energies.bregman import kl_to_mixture
from keras_betakd.energies.probability import ProbabilityEnergy


def decoupled_kl(log_p, log_q, labels):
    """The two parts of KL(p || q) around the label: `(tckd, nckd)`, in nats.

    KL(p || q) = tckd + (1 - p_y) nckd. Where the teacher excludes all but the label
    there is no other class to compare, and nckd is 0.

    Args:
        log_p, log_q: (..., V), log-probabilities.
        labels: (...), integer class ids y.
    """
    classes = ops.arange(log_p.shape[-1], dtype="int32")
    is_label = ops.cast(labels, "int32")[..., None] == classes
    binary, others, none = [], [], []
    for logs in (log_p, log_q):
        zero = ops.zeros_like(logs)
        label = ops.sum(ops.where(is_label, logs, zero), axis=-1)
        rest = ops.where(is_label, ops.full_like(logs, -math.inf), logs)
        total = _log_sum_exp(rest)
        empty = total == -math.inf
        binary.append(ops.stack([label, total], axis=-1))
        shift = ops.where(empty, ops.zeros_like(total), total)
        others.append(rest - shift[..., None])
        none.append(empty)
    tckd, nckd = kl_to_mixture(*binary), kl_to_mixture(*others)
    return tckd, ops.where(none[0], ops.zeros_like(nckd), nckd)


def _log_sum_exp(x):
    """log sum exp, -inf for a row of -inf, without NaN in its gradient there."""
    largest = ops.max(x, axis=-1, keepdims=True)
    finite = ops.where(largest == -math.inf, ops.zeros_like(largest), largest)
    shift = ops.stop_gradient(finite)
    total = ops.sum(ops.exp(x - shift), axis=-1)
    empty = total == 0
    logs = ops.log(ops.where(empty, ops.ones_like(total), total)) + shift[..., 0]
    return ops.where(empty, ops.full_like(logs, -math.inf), logs)


@keras.saving.register_keras_serializable(package="keras_betakd")
class DKDEnergy(ProbabilityEnergy):
    """Decoupled knowledge distillation (DKD).

    A KL divergence binds what the teacher knows beyond the label to how unsure it is of
    the label: a sure teacher hands on nothing else. Here both parts are weighed apart:

        l = alpha KL(b_p || b_q) + beta KL(p^ || q^)

    with b_p = (p_y, 1 - p_y) and b_q = (q_y, 1 - q_y) the label y against the rest,
    p^ and q^ the probabilities without y, renormalised, p = softmax(teacher logits /
    temperature), q = softmax(y_pred / temperature). alpha=1 and beta = 1 - p_y would be
    the forward KL. This beta is a constant of the energy; it has nothing to do with the
    learned weight of a `keras_betakd.Beta`.

    Shapes: `y_pred` is `(..., V)`, `y_true` a dict of `"logits"`, `(..., V)`, and
    `"labels"`, `(...)` class ids; in a `BetaKDDistiller` the labels come by themselves.
    `call` returns `(...)`, in nats per token; +inf if the student excludes a class
    (logit -inf) that the teacher allows.

    Masking, temperature and its T^2 factor, and what they do to beta* = d / (2 l):
    see `ProbabilityEnergy` and `Energy`.

    Args:
        alpha: positive number, weight of the label's part. Defaults to 1.
        beta: positive number, weight of the other classes' part. Defaults to 8, as in
            the paper (which tunes it between 0.5 and 10).
        temperature, scale_by_t2, from_logits: See `ProbabilityEnergy`. The paper uses
            `temperature=4, scale_by_t2=True`.
        name, reduction, dtype: See `Energy`.

    Raises:
        ValueError: for an invalid argument, for inputs of different shape, or if
            `y_true` holds no labels.

    Example:

    >>> from keras import ops
    >>> p = ops.array([[0.7, 0.2, 0.1]])
    >>> q = ops.array([[0.2, 0.5, 0.3]])
    >>> energy = DKDEnergy(beta=1.0, from_logits=False)
    >>> round(float(energy({"logits": p, "labels": ops.array([0])}, q)), 4)
    0.5865

    Reference: Zhao et al. 2022, "Decoupled knowledge distillation" (arXiv:2203.08679),
    equation 7.
    """

    needs_labels = True

    def __init__(self, alpha=1.0, beta=8.0, **kwargs):
        super().__init__(**kwargs)
        self.alpha = checked_number("alpha", alpha)
        self.beta = checked_number("beta", beta)

    def pointwise(self, log_p, log_q, labels):
        tckd, nckd = decoupled_kl(log_p, log_q, labels)
        return self.alpha * tckd + self.beta * nckd

    def get_config(self):
        return {**super().get_config(), "alpha": self.alpha, "beta": self.beta}
