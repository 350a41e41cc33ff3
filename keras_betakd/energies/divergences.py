"""Energies that are f-divergences between the teacher's p and the student's q.

They differ in which errors they penalise. The forward KL penalises low q where p is
high, so the student spreads its mass (mode covering). The reverse KL penalises high q
where p is low, so the student concentrates its mass (mode seeking). Jensen-Shannon and
total variation are bounded and lie between the two. The skew KLs are in
`keras_betakd.energies.skew`.

All but total variation are built of KL divergences to a mixture of the two models,
computed by `keras_betakd.energies.bregman`.

The functions take log-probabilities of shape `(..., V)` and return nats, `(...)`.
"""

import math

import keras
from keras import ops

from keras_betakd.energies import closed_forms
from keras_betakd.energies.base import checked_number
from keras_betakd.energies.bregman import kl_to_mixture
from keras_betakd.energies.forward_divergence import ForwardDivergenceEnergy
from keras_betakd.energies.probability import ProbabilityEnergy
from keras_betakd.energies.ties import GapEnergy, gap_of

_REGISTER = keras.saving.register_keras_serializable(package="keras_betakd")


def forward_kl(log_p, log_q):
    """KL(p || q) = sum p log(p / q), in nats."""
    return kl_to_mixture(log_p, log_q)


def reverse_kl(log_p, log_q):
    """KL(q || p) = sum q log(q / p), in nats."""
    return kl_to_mixture(log_q, log_p)


def mixed_kl(weight, forward, reverse):
    """weight KL(p || q) + (1 - weight) KL(q || p); infinite where one of them is.

    Args:
        weight: between 0 and 1.
        forward, reverse: the two divergences.
    """
    mean = weight * forward + (1.0 - weight) * reverse
    infinite = (forward == math.inf) | (reverse == math.inf)
    # Also where the weight is 0: 0 * inf would be NaN.
    return ops.where(infinite, ops.full_like(mean, math.inf), mean)


def jensen_shannon(log_p, log_q, teacher_weight=0.5):
    """w KL(p || m) + (1 - w) KL(q || m), m = w p + (1 - w) q, in nats."""
    w = teacher_weight
    to_teacher = kl_to_mixture(log_p, log_q, share=1.0 - w)
    return w * to_teacher + (1.0 - w) * kl_to_mixture(log_q, log_p, share=w)


def total_variation(log_p, log_q, rounding):
    """0.5 sum |p - q|, between 0 and 1; `rounding` as for `gap_of`."""
    gap = gap_of(ops.exp(log_p), ops.exp(log_q), rounding)
    return 0.5 * ops.sum(ops.abs(gap), axis=-1)


@_REGISTER
class ForwardKLEnergy(ForwardDivergenceEnergy):
    """Forward Kullback-Leibler divergence, the classic distillation loss.

    Use it when the student should cover everything that the teacher finds probable. It
    is the divergence, 0 at agreement, unless `form="cross_entropy"` selects the
    cross-entropy, which is never below the teacher's entropy and so caps a learned
    weight.

        l = sum_v p_v log(p_v / q_v),   p = softmax(y_true / temperature),
                                        q = softmax(y_pred / temperature)

    Hinton's distillation is `ForwardKLEnergy(temperature=T, scale_by_t2=True)`.

    Shapes: `y_true` and `y_pred` are `(..., V)`; `call` returns `(...)`, in nats per
    token; +inf if the student excludes (logit -inf) a class that the teacher allows.

    Masking: see `Energy`. Temperature, its T^2 factor and their effect on
    beta* = d / (2 l): see `ProbabilityEnergy`.

    Args:
        form: `"divergence"` (default), or `"cross_entropy"` to add the teacher's
            entropy; `keras_betakd.energies.forward_divergence` says what that does to
            beta.
        temperature: Positive number T. Defaults to 1.
        scale_by_t2: Whether to multiply by T^2, which makes beta* T^2 times smaller.
        from_logits: Whether the inputs are logits rather than probabilities.
        name, reduction, dtype: See `Energy`.

    Raises:
        ValueError: for an invalid argument, or for inputs of different shape.

    Example:

    >>> from keras import ops
    >>> p = ops.array([[0.7, 0.2, 0.1]])
    >>> q = ops.array([[0.2, 0.5, 0.3]])
    >>> energy = ForwardKLEnergy()
    >>> round(float(energy(ops.log(p), ops.log(q))), 4)
    0.5838

    Reference: Kullback and Leibler 1951; Hinton et al. 2015 (arXiv:1503.02531),
    section 2; as an energy, Beta-KD 2026 (arXiv:2603.21426).
    """

    def pointwise(self, log_p, log_q):
        return forward_kl(log_p, log_q) + self.floor(lambda: log_p)

    def closed_form(self, rows):
        value, parts = closed_forms.forward_kl(rows)
        return value + self.floor(rows.log_p), parts


@_REGISTER
class ReverseKLEnergy(ProbabilityEnergy):
    """Reverse Kullback-Leibler divergence: the student commits to teacher modes.

    Use it for generation, where a small student should not give mass to outputs that
    the teacher finds improbable.

        l = sum_v q_v log(q_v / p_v),   p = softmax(y_true / temperature),
                                        q = softmax(y_pred / temperature)

    Shapes: `y_true` and `y_pred` are `(..., V)`; `call` returns `(...)`, in nats per
    token; +inf if the teacher excludes (logit -inf) a class that the student allows.

    Masking: see `Energy`. Temperature, its T^2 factor and their effect on
    beta* = d / (2 l): see `ProbabilityEnergy`.

    Args:
        temperature: Positive number T. Defaults to 1.
        scale_by_t2: Whether to multiply by T^2, which makes beta* T^2 times smaller.
        from_logits: Whether the inputs are logits rather than probabilities.
        name, reduction, dtype: See `Energy`.

    Raises:
        ValueError: for an invalid argument, or for inputs of different shape.

    Example:

    >>> from keras import ops
    >>> p = ops.array([[0.7, 0.2, 0.1]])
    >>> q = ops.array([[0.2, 0.5, 0.3]])
    >>> energy = ReverseKLEnergy(from_logits=False)
    >>> round(float(energy(p, q)), 4)
    0.5372

    Reference: MiniLLM, Gu et al. 2024 (arXiv:2306.08543), equation 1.
    """

    def pointwise(self, log_p, log_q):
        return reverse_kl(log_p, log_q)

    def closed_form(self, rows):
        return closed_forms.reverse_kl(rows)


@_REGISTER
class JensenShannonEnergy(ProbabilityEnergy):
    """Generalised Jensen-Shannon divergence, between forward and reverse KL.

    Use it when the energy should be bounded and smooth: it is at most the entropy of
    (w, 1 - w), log 2 at w = 0.5, also where one model excludes a class.

        l = w KL(p || m) + (1 - w) KL(q || m),   m = w p + (1 - w) q

    with w = `teacher_weight`, p = softmax(y_true / temperature) and
    q = softmax(y_pred / temperature). Near agreement l = w (1 - w) KL(p || q).

    Shapes: `y_true` and `y_pred` are `(..., V)`; `call` returns `(...)`, in nats per
    token.

    Masking: see `Energy`. Temperature, its T^2 factor and their effect on
    beta* = d / (2 l): see `ProbabilityEnergy`.

    Args:
        teacher_weight: Weight w of the teacher in the mixture, above 0 and below 1.
            At 0 and 1 the formula is 0 for every input, so they raise: use
            `ForwardKLEnergy` or `ReverseKLEnergy`. Defaults to 0.5.
        temperature: Positive number T. Defaults to 1.
        scale_by_t2: Whether to multiply by T^2, which makes beta* T^2 times smaller.
        from_logits: Whether the inputs are logits rather than probabilities.
        name, reduction, dtype: See `Energy`.

    Raises:
        ValueError: for an invalid argument, or for inputs of different shape.

    Example:

    >>> from keras import ops
    >>> p = ops.array([[0.7, 0.2, 0.1]])
    >>> q = ops.array([[0.2, 0.5, 0.3]])
    >>> energy = JensenShannonEnergy(teacher_weight=0.1, from_logits=False)
    >>> round(float(energy(p, q)), 4)
    0.051

    Reference: Lin 1991 (IEEE Trans. Inf. Theory 37(1)), section IV; for distillation,
    GKD, Agarwal et al. 2024 (arXiv:2306.13649), section 2.
    """

    def __init__(self, teacher_weight: float = 0.5, **kwargs):
        super().__init__(**kwargs)
        self.teacher_weight = checked_number(
            "teacher_weight",
            teacher_weight,
            high=1.0,
            hint=" For the two ends use `ForwardKLEnergy` or `ReverseKLEnergy`.",
        )

    def pointwise(self, log_p, log_q):
        return jensen_shannon(log_p, log_q, self.teacher_weight)

    def closed_form(self, rows):
        return closed_forms.jensen_shannon(rows, self.teacher_weight)

    def get_config(self):
        return {**super().get_config(), "teacher_weight": self.teacher_weight}


@_REGISTER
class TotalVariationEnergy(GapEnergy):
    """Total variation distance: the probability mass on which the models differ.

    Use it when outliers should weigh no more than their probability mass. Near
    agreement it grows like the distance of the models and not like its square: its
    gradient does not vanish there, and with the prior read as a Laplace distribution d
    doubles.

        l = 0.5 sum_v |p_v - q_v|,   p = softmax(y_true / temperature),
                                     q = softmax(y_pred / temperature)

    Shapes: `y_true` and `y_pred` are `(..., V)`; `call` returns `(...)`, a
    probability between 0 and 1 per token. Classes on which the two differ by no more
    than rounding, about eps (4 + |z| + log V) (p_v + q_v) for logits of size |z|, are
    taken as equal: their part of value and gradient is 0.

    Masking: see `Energy`. Temperature, its T^2 factor and their effect on
    beta* = d / (2 l): see `ProbabilityEnergy`.

    Args:
        temperature: Positive number T. Defaults to 1.
        scale_by_t2: Whether to multiply by T^2, which makes beta* T^2 times smaller.
        from_logits: Whether the inputs are logits rather than probabilities.
        name, reduction, dtype: See `Energy`.

    Raises:
        ValueError: for an invalid argument, or for inputs of different shape.

    Example:

    >>> from keras import ops
    >>> p = ops.array([[0.7, 0.2, 0.1]])
    >>> q = ops.array([[0.2, 0.5, 0.3]])
    >>> energy = TotalVariationEnergy(from_logits=False)
    >>> round(float(energy(p, q)), 4)
    0.5

    Reference: f-DISTILL, Wen et al. 2023 (arXiv:2307.15190), section 3.
    """

    def pointwise(self, teacher, student):
        (log_p, rounding), (log_q, theirs) = teacher, student
        return total_variation(log_p, log_q, rounding + theirs)

    def closed_form(self, rows):
        return closed_forms.total_variation(rows)
