"""Value and slope of the probability energies in closed form, without autodiff.

The fused head (`keras_betakd.head_loss`) computes an energy and its gradient tile by
tile, in the forward pass. Automatic differentiation of the formulas in `divergences`
and `distances` would give the same numbers with several times the passes over a tile;
here the two share what they need, no pass is a selection, which costs as much as an
exponential on some backends, and an array that only this file has seen is changed by
`*=` and `-=`, which need no fresh memory on PyTorch.

Every function takes `rows.ProbabilityRows` and returns `(value, slope)`: the energy,
(N,), and its gradient towards log q before normalisation, (N, V), that is, towards the
student's logits divided by the temperature. For an energy whose derivative towards q is
g, that is the softmax Jacobian applied to g, q (g - sum_v q g). The slope comes as
pairs of factor, a number or (N, 1), and array, whose products add up to it, so that q
is multiplied only once for all energies and the cross-entropy.

A KL divergence to a mixture m is summed as p (expm1(d) - d), d = log(m / p), like in
`bregman` and for its reason: it keeps its digits where the models agree. Where some
class has d beyond `_APART`, p is too small beside m to carry that form and the plain
-p d is summed instead, whose rounding is small beside so large a disagreement.

A value that is infinite has no slope: what is returned for it may be anything.
"""

import math

from keras import ops

from keras_betakd.backends import at_least, expm1_of, log1p_of, within

_INFINITE = 1e29
_APART = 16.0
_FAR = 40.0  # exp(-40) is beyond the digits of float32, exp(40) within its range
_NOTHING = 1e-30  # beside any probability that matters, far above float32's least
_ALL_BUT_1 = 1.0 - 2.0**-22  # below 1 after two roundings of float32


def _sum(x):
    return ops.sum(x, axis=-1)


def _column(x):
    return ops.expand_dims(x, axis=-1)


def _through_softmax(q, derivative, factor=1.0):
    """q (g - sum_v q g) times a factor, of g = `derivative`."""
    centred = derivative - _column(_sum(q * derivative))
    centred *= q
    # A second time: the first mean is rounded like the large numbers it is made of.
    return [(factor, centred), (-factor * _column(_sum(centred)), q)]


def _near(d):
    """1 for rows where no class has d beyond `_APART`, otherwise 0, (N, 1)."""
    return ops.cast(ops.max(d, axis=-1, keepdims=True) <= _APART, d.dtype)


def _kl_whole(p, d):
    """KL(p || q) of d = log(q / p); infinite where q excludes what p allows."""
    excess = expm1_of(_near(d) * d)
    excess -= d
    excess *= p
    return ops.where(ops.min(d, axis=-1) < -_INFINITE, math.inf, _sum(excess))


def forward_kl(rows):
    p, q = rows.p, rows.q
    return _kl_whole(p, rows.log_ratio()), [(1.0, q), (-1.0, p)]


def reverse_kl(rows):
    d = rows.log_ratio()
    return _kl_whole(rows.q, -d), _through_softmax(rows.q, d)


def _kl_to_mixture(p, d, share):
    """KL(p || m), m = (1 - share) p + share q, and m / p - 1, of d = log(q / p)."""
    growth = ops.expm1(ops.minimum(d, _FAR))
    growth *= share
    excess = _near(d) * growth
    excess -= ops.log1p(growth)
    excess *= p
    return _sum(excess), growth


def jensen_shannon(rows, teacher_weight):
    """sum_v [w p log(p / m) + (1 - w) q log(q / m)], m = w p + (1 - w) q.

    q / m = 1 + x and p / m = 1 - x (1 - w) / w with x = (q - p) / (p + q (1 - w) / w).
    An error in x moves the two terms of a class against each other, so that near
    agreement, unlike in a single KL divergence, nothing is lost; and far from it the
    model that all but excludes a class adds little there beside the other, so that
    neither needs log-probabilities.
    """
    w = teacher_weight
    odds = (1.0 - w) / w
    mixture = rows.p + (rows.q if odds == 1.0 else odds * rows.q)
    from_q = rows.q - rows.p
    from_q /= at_least(mixture, _NOTHING)
    # Where a model excludes a class, one of the ratios is 0 and has no logarithm.
    from_q = within(from_q, -_ALL_BUT_1, _ALL_BUT_1 / odds)
    from_p = log1p_of(-odds * from_q)
    from_q = log1p_of(from_q)
    from_p *= rows.p
    from_q *= rows.q
    teacher, student = _sum(from_p), _sum(from_q)
    slope = [(1.0 - w, from_q), ((w - 1.0) * _column(student), rows.q)]
    return w * teacher + (1.0 - w) * student, slope


def skew_forward_kl(rows, skew):
    value, growth = _kl_to_mixture(rows.p, rows.log_ratio(), 1.0 - skew)
    return value, _through_softmax(rows.q, (skew - 1.0) / (1.0 + growth))


def skew_reverse_kl(rows, skew):
    value, growth = _kl_to_mixture(rows.q, -rows.log_ratio(), 1.0 - skew)
    slope = -ops.log1p(growth) - skew / (1.0 + growth)
    return value, _through_softmax(rows.q, slope)


def total_variation(rows):
    gap = rows.q - rows.p
    slope = _through_softmax(rows.q, ops.sign(gap), 0.5)
    return 0.5 * _sum(ops.abs(gap)), slope


def mse_probs(rows, mean_over_vocabulary):
    scale = 1.0 / rows.q.shape[-1] if mean_over_vocabulary else 1.0
    gap = rows.q - rows.p
    slope = _through_softmax(rows.q, gap, 2.0 * scale)
    return scale * _sum(gap * gap), slope


def cosine_probs(rows):
    length = ops.sqrt(_sum(rows.q * rows.q))
    teacher = rows.p / _column(ops.sqrt(_sum(rows.p * rows.p)))
    student = rows.q / _column(length)
    gap = student - teacher
    value = 0.5 * _sum(gap * gap)
    # (cos q/|q| - p/|p|) / |q|, with cos = 1 - value: no cancellation at agreement.
    # Scaling q changes nothing, so its mean under q is 0 and needs no subtraction.
    gap -= _column(value) * student
    gap *= student
    return value, [(1.0, gap)]
