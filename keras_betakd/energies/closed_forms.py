"""Value and slope of the probability energies in closed form, without autodiff.

The fused head (`keras_betakd.fused`) computes an energy and its gradient tile by tile,
in the forward pass. Automatic differentiation of the formulas in `divergences` and
`distances` would give the same numbers with several times the passes over a tile; here
the two share what they need, and no pass is a selection, which costs as much as an
exponential on some backends.

Every function takes a `Rows` and returns `(value, slope)`: the energy, (N,), and its
gradient towards log q before normalisation, (N, V), that is, towards the student's
logits divided by the temperature. For an energy whose derivative towards q is g, that
is the softmax Jacobian applied to g, q (g - sum_v q g).

A KL divergence to a mixture m is summed as p (expm1(d) - d), d = log(m / p), like in
`bregman` and for its reason: it keeps its digits where the models agree. Where some
class has d beyond `_APART`, p is too small beside m to carry that form and the plain
-p d is summed instead, whose rounding is small beside so large a disagreement.

A value that is infinite has no slope: what is returned for it may be anything.
"""

import dataclasses
import math
from typing import Any

from keras import ops

# Stands for log 0: large enough that exp() of it is 0, finite so that 0 times it is 0.
LOG_ZERO = -1e30
_INFINITE = 1e29
_APART = 16.0
_FAR = 40.0  # exp(-40) is beyond the digits of float32, exp(40) within its range


@dataclasses.dataclass(frozen=True)
class Rows:
    """Teacher's p and student's q at N positions: log-probabilities and probabilities.

    All (N, V) float32; the logs are `LOG_ZERO` instead of -inf.
    """

    log_p: Any
    log_q: Any
    p: Any
    q: Any


def _sum(x):
    return ops.sum(x, axis=-1)


def _column(x):
    return ops.expand_dims(x, axis=-1)


def _through_softmax(q, derivative):
    centred = derivative - _column(_sum(q * derivative))
    # A second time: the first mean is rounded like the large numbers it is made of.
    return q * (centred - _column(_sum(q * centred)))


def _kl(p, d, growth, largest):
    """sum p (growth - d), growth = expm1(d); plain where `largest`, max d, is far."""
    plain = -_sum(p * d)
    return ops.where(largest > _APART, plain, _sum(p * (growth - d)))


def _kl_whole(p, log_p, log_q):
    """KL(p || q) and d = log(q / p); infinite where q excludes what p allows."""
    d = log_q - log_p
    largest, smallest = ops.max(d, axis=-1), ops.min(d, axis=-1)
    value = _kl(p, d, ops.expm1(ops.minimum(d, _FAR)), largest)
    return ops.where(smallest < -_INFINITE, math.inf, value), d


def forward_kl(rows):
    value, _ = _kl_whole(rows.p, rows.log_p, rows.log_q)
    return value, rows.q - rows.p


def reverse_kl(rows):
    value, d = _kl_whole(rows.q, rows.log_q, rows.log_p)
    return value, _through_softmax(rows.q, -d)


def _kl_to_mixture(p, log_p, log_q, share):
    """KL(p || m), m = (1 - share) p + share q, and m / p - 1."""
    d = log_q - log_p
    growth = share * ops.expm1(ops.minimum(d, _FAR))
    return _kl(p, ops.log1p(growth), growth, ops.max(d, axis=-1)), growth


def jensen_shannon(rows, teacher_weight):
    """-sum_v [w p log(m / p) + (1 - w) q log(m / q)], m = w p + (1 - w) q.

    One logarithm gives both: with d = log(q / p) and s the weight of the smaller of p
    and q, log(m / larger) = log1p(s expm1(-|d|)), and log(m / smaller) is |d| more. An
    error in d moves the two terms of a class against each other, so that near
    agreement, unlike in a single KL divergence, nothing is lost.
    """
    w = teacher_weight
    d = rows.log_q - rows.log_p
    share = w if w == 0.5 else ops.where(d > 0, w, 1.0 - w)
    to_larger = ops.log1p(share * ops.expm1(-ops.abs(d)))
    to_p, to_q = to_larger + ops.maximum(d, 0.0), to_larger - ops.minimum(d, 0.0)
    teacher, student = _sum(rows.p * to_p), _sum(rows.q * to_q)
    slope = (1.0 - w) * rows.q * (_column(student) - to_q)
    return -(w * teacher + (1.0 - w) * student), slope


def skew_forward_kl(rows, skew):
    value, growth = _kl_to_mixture(rows.p, rows.log_p, rows.log_q, 1.0 - skew)
    return value, _through_softmax(rows.q, (skew - 1.0) / (1.0 + growth))


def skew_reverse_kl(rows, skew):
    value, growth = _kl_to_mixture(rows.q, rows.log_q, rows.log_p, 1.0 - skew)
    slope = -ops.log1p(growth) - skew / (1.0 + growth)
    return value, _through_softmax(rows.q, slope)


def total_variation(rows):
    gap = rows.q - rows.p
    slope = _through_softmax(rows.q, 0.5 * ops.sign(gap))
    return 0.5 * _sum(ops.abs(gap)), slope


def mse_probs(rows, mean_over_vocabulary):
    scale = 1.0 / rows.q.shape[-1] if mean_over_vocabulary else 1.0
    gap = rows.q - rows.p
    slope = _through_softmax(rows.q, (2.0 * scale) * gap)
    return scale * _sum(gap * gap), slope


def cosine_probs(rows):
    length = ops.sqrt(_sum(rows.q * rows.q))
    teacher = rows.p / _column(ops.sqrt(_sum(rows.p * rows.p)))
    student = rows.q / _column(length)
    gap = student - teacher
    value = 0.5 * _sum(gap * gap)
    # (cos q/|q| - p/|p|) / |q|, with cos = 1 - value: no cancellation at agreement.
    # Scaling q changes nothing, so its mean under q is 0 and needs no subtraction.
    return value, student * (gap - _column(value) * student)
