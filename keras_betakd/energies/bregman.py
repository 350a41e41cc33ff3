"""KL divergence to a mixture in Bregman form, accurate where the models nearly agree.

Most divergences between a teacher p and a student q are the KL divergence of one to a
mixture of both (the other model included, as the mixture with share 1). It is computed
as

    KL(p || m) = sum_v p_v (exp(d_v) - 1 - d_v),    d_v = log m_v - log p_v

which equals sum_v p_v log(p_v / m_v) because p and m sum to 1, has the same gradient,
and has no negative term. The sum of p_v log(p_v / m_v) has terms of both signs, which
cancel and lose all digits when the student approaches its teacher, where a learned
weight divides by the energy. The Bregman form keeps its digits there, is exactly 0 at
equality and never negative.
"""

import math

import keras
from keras import ops

_NEAR = 0.3  # below this |d|, exp(d) - 1 - d is summed as a series
_SERIES_DEGREE = {"float32": 8, "float64": 13}  # truncated below rounding at _NEAR


def _log_ratio(log_p, log_q):
    """log q - log p; 0 where both are -inf, that is, where both exclude a class."""
    excluded = (log_p == -math.inf) & (log_q == -math.inf)
    zero = ops.zeros_like(log_p)
    return ops.where(excluded, zero, log_q) - ops.where(excluded, zero, log_p)


def _log_mixture_ratio(d, share):
    """log((1 - share) + share * exp(d)), the log-ratio of the mixture to p."""
    near = ops.abs(d) < 1.0
    # Exactly 0 at d = 0, unlike the log-add-exp of the two rounded shares.
    d_near = ops.where(near, d, ops.zeros_like(d))
    close = ops.log1p(share * ops.expm1(d_near))
    # Log-add-exp with the larger exponent factored out; `ops.logaddexp` rounds float64
    # to float32 on torch and JAX.
    d_far = ops.where(near, ops.ones_like(d), d)
    positive = d_far > 0
    decay = ops.exp(-ops.abs(d_far))
    keep = 1.0 - share
    inner = ops.where(positive, share + keep * decay, keep + share * decay)
    far = ops.log(inner) + ops.where(positive, d_far, ops.zeros_like(d))
    return ops.where(near, close, far)


def _exp_remainder(d):
    """exp(d) - 1 - d for |d| < `_NEAR`, by its Taylor series in Horner's form."""
    degree = _SERIES_DEGREE[keras.backend.standardize_dtype(d.dtype)]
    total = ops.full_like(d, 1.0 / math.factorial(degree))
    for k in range(degree - 1, 1, -1):
        total = total * d + 1.0 / math.factorial(k)
    return total * d * d


def kl_to_mixture(log_p, log_q, share=1.0):
    """KL(p || (1 - share) p + share q) in nats, never negative and 0 at p = q.

    Args:
        log_p, log_q: (..., V), log-probabilities.
        share: number above 0, at most 1.

    Returns:
        (...).
    """
    # Every selection also replaces the argument of the branch that is not taken: 0
    # times an infinite derivative would put NaN into the gradient.
    p = ops.exp(log_p)
    gap = share * (ops.exp(log_q) - p)
    d = _log_ratio(log_p, log_q)
    if share < 1.0:
        d = _log_mixture_ratio(d, share)
    zero = ops.zeros_like(d)
    near = ops.abs(d) < _NEAR
    close = p * _exp_remainder(ops.where(near, d, zero))
    # p exp(d) is written as p + gap, since exp(d) may overflow where p is rounded to 0.
    unused = near | (ops.abs(d) == math.inf)
    far = gap - p * ops.where(unused, zero, d)
    terms = ops.where(near, close, far)
    # Infinite where p allows a class and q excludes it, even if p is rounded to 0.
    terms = ops.where(d == -math.inf, ops.full_like(d, math.inf), terms)
    return _centred_gradient(ops.sum(terms, axis=-1), p)


def _centred_gradient(value, p):
    """`value` = KL(p || m), with a term of value 0 that makes its gradient accurate.

    The gradient with respect to log p is close to p log(p / m), from which the backward
    pass of the softmax that made p subtracts p KL. For a peaked p both are large, and
    their difference keeps few digits of float32. The term KL (c - sum p), with KL and
    c = sum p as constants, subtracts p KL before the softmax.
    """
    total = ops.sum(p, axis=-1)
    level = ops.where(value == math.inf, ops.zeros_like(value), value)
    return value + ops.stop_gradient(level) * (ops.stop_gradient(total) - total)
