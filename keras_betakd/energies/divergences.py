"""Energies that are f-divergences between the teacher's p and the student's q.

They differ in which mistakes they charge for. The forward KL charges the student for
missing what the teacher finds likely and spreads its mass (mode covering); the
reverse KL charges it for likely outputs that the teacher finds unlikely and sharpens
it (mode seeking); Jensen-Shannon and total variation are bounded compromises; the
skew KLs mix a little of the other model in, which keeps value and gradient bounded.

All but total variation are the KL divergence to a mixture of the two models, so one
function computes them, `kl_to_mixture`, in Bregman form:

    KL(p || m) = sum_v p_v (exp(d_v) - 1 - d_v),    d_v = log m_v - log p_v

which equals sum_v p_v log(p_v / m_v) because both sum to 1, has the same gradient,
and has no negative term. A sum of terms of both signs loses all digits when the
student approaches its teacher, which is exactly where a learned weight divides by the
energy; this form is exact there, 0 at equality and never negative.

The functions take log-probabilities of shape `(..., V)` and return nats, `(...)`.
"""

import math

import keras
from keras import ops

from keras_betakd.energies.base import ProbabilityEnergy, checked_number

_NEAR = 0.3  # below this |d|, exp(d) - 1 - d is summed as a series
_SERIES_DEGREE = {"float32": 8, "float64": 13}  # truncated below rounding at _NEAR
_REGISTER = keras.saving.register_keras_serializable(package="keras_betakd")


def _log_ratio(log_p, log_q):
    """log q - log p; 0 where both are -inf, outside the support of the comparison."""
    excluded = (log_p == -math.inf) & (log_q == -math.inf)
    zero = ops.zeros_like(log_p)
    return ops.where(excluded, zero, log_q) - ops.where(excluded, zero, log_p)


def _log_mixture_ratio(d, share):
    """log((1 - share) + share * exp(d)), the log-ratio of the mixture to p."""
    near = ops.abs(d) < 1.0
    # Exactly 0 at d = 0, which a log-add-exp of the two rounded shares is not.
    d_near = ops.where(near, d, ops.zeros_like(d))
    close = ops.log1p(share * ops.expm1(d_near))
    # Log-add-exp with the larger exponent taken out; `ops.logaddexp` rounds float64
    # to float32 on torch and JAX.
    d_far = ops.where(near, ops.ones_like(d), d)
    positive = d_far > 0
    decay = ops.exp(-ops.abs(d_far))
    keep = 1.0 - share
    inner = ops.where(positive, share + keep * decay, keep + share * decay)
    far = ops.log(inner) + ops.where(positive, d_far, ops.zeros_like(d))
    return ops.where(near, close, far)


def _exp_remainder(d):
    """exp(d) - 1 - d for |d| < _NEAR, by its Taylor series in Horner's form."""
    degree = _SERIES_DEGREE[keras.backend.standardize_dtype(d.dtype)]
    total = ops.full_like(d, 1.0 / math.factorial(degree))
    for k in range(degree - 1, 1, -1):
        total = total * d + 1.0 / math.factorial(k)
    return total * d * d


def kl_to_mixture(log_p, log_q, share=1.0):
    """KL(p || (1 - share) p + share q) in nats, never negative and 0 at p = q.

    Every selection below also replaces the argument of the branch not taken: 0 times
    an infinite slope would otherwise put NaN into the gradient.
    """
    p = ops.exp(log_p)
    gap = share * (ops.exp(log_q) - p)
    d = _log_ratio(log_p, log_q)
    if share < 1.0:
        d = _log_mixture_ratio(d, share)
    zero = ops.zeros_like(d)
    near = ops.abs(d) < _NEAR
    close = p * _exp_remainder(ops.where(near, d, zero))
    # p exp(d) is written as p + gap: with p rounded to 0, exp(d) may overflow.
    unused = near | (ops.abs(d) == math.inf)
    far = gap - p * ops.where(unused, zero, d)
    terms = ops.where(near, close, far)
    # A class that p allows and q excludes, even if exp(log p) is rounded to 0.
    terms = ops.where(d == -math.inf, ops.full_like(d, math.inf), terms)
    return _centred_gradient(ops.sum(terms, axis=-1), p)


def _centred_gradient(value, p):
    """`value`, with the slope along the constant sum of `p` taken out: adds 0.

    The slope of KL(p || m) in log p is near p (log p/m); the softmax behind p then
    subtracts p KL. For a sharp model both are large, and their difference, the
    gradient, would keep few digits of float32.
    """
    total = ops.sum(p, axis=-1)
    level = ops.where(value == math.inf, ops.zeros_like(value), value)
    return value + ops.stop_gradient(level) * (ops.stop_gradient(total) - total)


def forward_kl(log_p, log_q):
    """KL(p || q) = sum p log(p / q), in nats."""
    return kl_to_mixture(log_p, log_q)


def reverse_kl(log_p, log_q):
    """KL(q || p) = sum q log(q / p), in nats."""
    return kl_to_mixture(log_q, log_p)


def jensen_shannon(log_p, log_q, teacher_weight=0.5):
    """w KL(p || m) + (1 - w) KL(q || m), m = w p + (1 - w) q, in nats."""
    w = teacher_weight
    to_teacher = kl_to_mixture(log_p, log_q, share=1.0 - w)
    return w * to_teacher + (1.0 - w) * kl_to_mixture(log_q, log_p, share=w)


def skew_forward_kl(log_p, log_q, skew=0.1):
    """KL(p || skew p + (1 - skew) q), in nats."""
    return kl_to_mixture(log_p, log_q, share=1.0 - skew)


def skew_reverse_kl(log_p, log_q, skew=0.1):
    """KL(q || (1 - skew) p + skew q), in nats."""
    return kl_to_mixture(log_q, log_p, share=1.0 - skew)


def total_variation(log_p, log_q):
    """0.5 sum |p - q|, between 0 and 1."""
    return 0.5 * ops.sum(ops.abs(ops.exp(log_q) - ops.exp(log_p)), axis=-1)


@_REGISTER
class ForwardKLEnergy(ProbabilityEnergy):
    """Forward Kullback-Leibler divergence, the classic distillation loss.

    Use it when the student should cover everything the teacher finds likely. It is
    the true divergence, 0 at agreement, not the cross-entropy, whose floor is the
    teacher's entropy and would cap a learned weight.

        l = sum_v p_v log(p_v / q_v),   p = softmax(y_true / temperature),
                                        q = softmax(y_pred / temperature)

    Shapes: `y_true` and `y_pred` are `(..., V)`; `call` returns `(...)`, in nats per
    token; +inf if the student excludes (logit -inf) a class that the teacher allows.

    Masking, temperature and its T^2 factor, and what they do to beta* = d / (2 l):
    see `ProbabilityEnergy` and `Energy`.

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
    >>> energy = ForwardKLEnergy()
    >>> round(float(energy(ops.log(p), ops.log(q))), 4)
    0.5838

    Reference: Kullback and Leibler 1951; Hinton et al. 2015 (arXiv:1503.02531),
    section 2; as an energy, Beta-KD 2026 (arXiv:2603.21426).
    """

    def pointwise(self, log_p, log_q):
        return forward_kl(log_p, log_q)


@_REGISTER
class ReverseKLEnergy(ProbabilityEnergy):
    """Reverse Kullback-Leibler divergence: the student commits to teacher modes.

    Use it for generation, where a small student should not spread mass over outputs
    that the teacher would never write.

        l = sum_v q_v log(q_v / p_v),   p = softmax(y_true / temperature),
                                        q = softmax(y_pred / temperature)

    Shapes: `y_true` and `y_pred` are `(..., V)`; `call` returns `(...)`, in nats per
    token; +inf if the teacher excludes (logit -inf) a class that the student allows.

    Masking, temperature and its T^2 factor, and what they do to beta* = d / (2 l):
    see `ProbabilityEnergy` and `Energy`.

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


@_REGISTER
class JensenShannonEnergy(ProbabilityEnergy):
    """Generalised Jensen-Shannon divergence, between forward and reverse KL.

    Use it when a bounded, smooth energy is wanted: it never exceeds the entropy of
    (w, 1 - w), log 2 at w = 0.5, also where one model excludes a class.

        l = w KL(p || m) + (1 - w) KL(q || m),   m = w p + (1 - w) q

    with w = `teacher_weight`, p = softmax(y_true / temperature) and
    q = softmax(y_pred / temperature). Near agreement l = w (1 - w) KL(p || q).

    Shapes: `y_true` and `y_pred` are `(..., V)`; `call` returns `(...)`, in nats per
    token.

    Masking, temperature and its T^2 factor, and what they do to beta* = d / (2 l):
    see `ProbabilityEnergy` and `Energy`.

    Args:
        teacher_weight: Weight w of the teacher in the mixture, above 0 and below 1.
            At the ends the formula is 0 for every input, so they are refused: use
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

    def __init__(self, teacher_weight=0.5, **kwargs):
        super().__init__(**kwargs)
        self.teacher_weight = checked_number(
            "teacher_weight",
            teacher_weight,
            high=1.0,
            hint=" For the two ends use `ForwardKLEnergy` or `ReverseKLEnergy`.",
        )

    def pointwise(self, log_p, log_q):
        return jensen_shannon(log_p, log_q, self.teacher_weight)

    def get_config(self):
        return {**super().get_config(), "teacher_weight": self.teacher_weight}


@_REGISTER
class TotalVariationEnergy(ProbabilityEnergy):
    """Total variation distance, the share of probability mass in the wrong place.

    Use it when outliers should count no more than their mass. It grows like the
    distance itself, not its square, so a Laplace reading of its prior doubles d, and
    its gradient does not fade near agreement.

        l = 0.5 sum_v |p_v - q_v|,   p = softmax(y_true / temperature),
                                     q = softmax(y_pred / temperature)

    Shapes: `y_true` and `y_pred` are `(..., V)`; `call` returns `(...)`, a
    probability between 0 and 1 per token. At equality the gradient is taken as 0.

    Masking, temperature and its T^2 factor, and what they do to beta* = d / (2 l):
    see `ProbabilityEnergy` and `Energy`.

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

    def pointwise(self, log_p, log_q):
        return total_variation(log_p, log_q)


class _SkewEnergy(ProbabilityEnergy):
    """What the two skew divergences share: the weight `skew`."""

    def __init__(self, skew=0.1, **kwargs):
        super().__init__(**kwargs)
        self.skew = checked_number("skew", skew, high=1.0)

    def get_config(self):
        return {**super().get_config(), "skew": self.skew}


@_REGISTER
class SkewForwardKLEnergy(_SkewEnergy):
    """Skew forward KL: the forward KL with some of the teacher mixed into the student.

    Use it in place of `ForwardKLEnergy` where that is dominated by a few tokens on
    which the student is far off: the mixture bounds it by -log(skew).

        l = KL(p || a p + (1 - a) q),   p = softmax(y_true / temperature),
                                        q = softmax(y_pred / temperature)

    with a = `skew`. Near agreement l = (1 - a)^2 KL(p || q).

    Shapes: `y_true` and `y_pred` are `(..., V)`; `call` returns `(...)`, in nats per
    token.

    Masking, temperature and its T^2 factor, and what they do to beta* = d / (2 l):
    see `ProbabilityEnergy` and `Energy`.

    Args:
        skew: Weight a of the teacher in the mixture, above 0 and below 1. Defaults
            to 0.1.
        temperature: Positive number T. Defaults to 1.
        scale_by_t2: Whether to multiply by T^2, which makes beta* T^2 times smaller.
        from_logits: Whether the inputs are logits rather than probabilities.
        name, reduction, dtype: See `Energy`.

    Raises:
        ValueError: for an invalid argument, or for inputs of different shape.

    Example:

    >>> from keras import ops
    >>> teacher = ops.array([[0.0, -float("inf")]])
    >>> student = ops.array([[-float("inf"), 0.0]])
    >>> energy = SkewForwardKLEnergy(skew=0.1)
    >>> round(float(energy(teacher, student)), 4)  # the bound, -log(0.1)
    2.3026

    Reference: DistiLLM, Ko et al. 2024 (arXiv:2402.03898), section 3.1; Lee 2001.
    """

    def pointwise(self, log_p, log_q):
        return skew_forward_kl(log_p, log_q, self.skew)


@_REGISTER
class SkewReverseKLEnergy(_SkewEnergy):
    """Skew reverse KL: the reverse KL with some of the student mixed into the teacher.

    Use it in place of `ReverseKLEnergy` where the teacher gives next to no mass to
    what a young student writes: the mixture bounds the energy by -log(skew).

        l = KL(q || (1 - a) p + a q),   p = softmax(y_true / temperature),
                                        q = softmax(y_pred / temperature)

    with a = `skew`. Near agreement l = (1 - a)^2 KL(q || p).

    Shapes: `y_true` and `y_pred` are `(..., V)`; `call` returns `(...)`, in nats per
    token.

    Masking, temperature and its T^2 factor, and what they do to beta* = d / (2 l):
    see `ProbabilityEnergy` and `Energy`.

    Args:
        skew: Weight a of the student in the mixture, above 0 and below 1. Defaults
            to 0.1.
        temperature: Positive number T. Defaults to 1.
        scale_by_t2: Whether to multiply by T^2, which makes beta* T^2 times smaller.
        from_logits: Whether the inputs are logits rather than probabilities.
        name, reduction, dtype: See `Energy`.

    Raises:
        ValueError: for an invalid argument, or for inputs of different shape.

    Example:

    >>> from keras import ops
    >>> teacher = ops.array([[0.0, -float("inf")]])
    >>> student = ops.array([[-float("inf"), 0.0]])
    >>> energy = SkewReverseKLEnergy(skew=0.5)
    >>> round(float(energy(teacher, student)), 4)  # the bound, log 2
    0.6931

    Reference: DistiLLM, Ko et al. 2024 (arXiv:2402.03898), section 3.1; Lee 2001.
    """

    def pointwise(self, log_p, log_q):
        return skew_reverse_kl(log_p, log_q, self.skew)
