"""Decoupled knowledge distillation: KL of the label, and of the other classes."""

import math

import keras
from keras import ops

from keras_betakd.energies.base import checked_number
from keras_betakd.energies.bregman import kl_to_mixture
from keras_betakd.energies.probability import ProbabilityEnergy


def decoupled_kl(log_p, log_q, labels):
    """The target-class and the non-target-class part of KL(p || q), in nats.

    KL(p || q) = tckd + (1 - p_y) nckd. Where the teacher excludes all classes but the
    label, nckd is 0.

    Args:
        log_p, log_q: (..., V), log-probabilities.
        labels: (...), integer class ids y.

    Returns:
        `(tckd, nckd)`, (...) each.
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
    """log sum exp; -inf for a row of -inf, with a gradient that is not NaN there."""
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

    A KL divergence weights the part of the classes other than the label by the
    teacher's probability that the label is wrong: of a confident teacher the student
    learns little about them. Here the two parts have weights of their own:

        l = alpha KL(b_p || b_q) + beta KL(p^ || q^)

    with b_p = (p_y, 1 - p_y) and b_q = (q_y, 1 - q_y) the label y against the rest,
    p^ and q^ the probabilities without y, renormalised, p = softmax(teacher logits /
    temperature), q = softmax(y_pred / temperature). alpha = 1 and beta = 1 - p_y would
    give the forward KL. This beta is a constant of the energy and unrelated to the
    learned weight of a `keras_betakd.Beta`.

    Shapes: `y_pred` is `(..., V)`, `y_true` a dict of `"logits"`, `(..., V)`, and
    `"labels"`, `(...)` class ids; a `BetaKDDistiller` passes the labels itself. For
    `keras.Model.compile`, which takes no dict, `y_true` is `(..., V + 1)` in float32:
    the logits with the class id behind them. `call` returns `(...)`, in nats per token;
    +inf if the student excludes a class (logit -inf) that the teacher allows.

    Masking: see `Energy`. Temperature, its T^2 factor and their effect on
    beta* = d / (2 l): see `ProbabilityEnergy`.

    Args:
        alpha: positive number, weight of the label's part. Defaults to 1.
        beta: positive number, weight of the other classes' part. Defaults to 8, as in
            the paper, which tunes it between 0.5 and 10.
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

    In any Keras model, with the ids behind the teacher's logits:

    ```python
    model.compile("adam", loss=DKDEnergy())
    model.fit(x, np.concatenate([teacher_logits, labels[..., None]], axis=-1))
    ```

    Reference: Zhao et al. 2022, "Decoupled knowledge distillation" (arXiv:2203.08679),
    equation 7.
    """

    needs_labels = True

    def __init__(self, alpha: float = 1.0, beta: float = 8.0, **kwargs):
        super().__init__(**kwargs)
        self.alpha = checked_number("alpha", alpha)
        self.beta = checked_number("beta", beta)

    def pointwise(self, log_p, log_q, labels):
        tckd, nckd = decoupled_kl(log_p, log_q, labels)
        return self.alpha * tckd + self.beta * nckd

    def get_config(self):
        return {**super().get_config(), "alpha": self.alpha, "beta": self.beta}
