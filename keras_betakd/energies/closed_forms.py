"""Values and gradients of the probability energies in closed form, without autodiff.

The fused head (`keras_betakd.head_loss`) computes an energy and its gradient tile by
tile, in the forward pass. Automatic differentiation of the formulas in `divergences`
and `distances` would give the same numbers with several times the passes over a tile.
Here value and gradient share intermediate results, selections are avoided, since one
costs as much as an exponential on some backends, and arrays that were made in this file
are changed by `*=` and `-=`, which allocate no memory on PyTorch.

Every function takes a `ProbabilityRows` and returns `(value, gradient)`: the energy in
its units, (N,), and its gradient with respect to the student's logits divided by the
temperature, (N, V). With g the derivative of an energy with respect to q, that gradient
is the softmax Jacobian applied to g: q (g - sum_v q g). It is returned as pairs of a
factor, a number or (N, 1), and an array, whose products add up to it, so that q is
multiplied only once for all energies and the cross-entropy.

A KL divergence to a mixture m is the sum of p (expm1(d) - d), d = log(m / p), as in
`keras_betakd.energies.bregman`, since that form keeps its digits where the models
agree. In rows where some class has d above `_APART`, p is too small relative to m for
that form, and -p d is summed instead, whose rounding error is small relative to so
large a divergence.

Where a value is infinite the gradient is undefined and may hold anything.
"""

import math

from keras import ops

from keras_betakd.backends import at_least, expm1_of, log1p_of, within
from keras_betakd.energies.ties import gap_of, rounding_of

_INFINITE = 1e29
_APART = 16.0
_FAR = 40.0  # exp(-40) is below the precision of float32, exp(40) within its range
_NOTHING = 1e-30  # negligible as a probability, far above float32's smallest number
_ALL_BUT_1 = 1.0 - 2.0**-22  # below 1 after two roundings of float32


def _sum(x):
    return ops.sum(x, axis=-1)


def _column(x):
    return ops.expand_dims(x, axis=-1)


def _through_softmax(q, derivative, factor=1.0):
    """The softmax Jacobian applied to g = `derivative`: factor q (g - sum_v q g)."""
    centred = derivative - _column(_sum(q * derivative))
    centred *= q
    # Centred twice: the first mean has the rounding error of the large terms in it.
    return [(factor, centred), (-factor * _column(_sum(centred)), q)]


def _near(d):
    """1 for rows where no class has d above `_APART`, otherwise 0: (N, 1)."""
    return ops.cast(ops.max(d, axis=-1, keepdims=True) <= _APART, d.dtype)


def _kl(p, d):
    """KL(p || q), d = log(q / p); infinite where q excludes a class that p allows."""
    excess = expm1_of(_near(d) * d)
    excess -= d
    excess *= p
    return ops.where(ops.min(d, axis=-1) < -_INFINITE, math.inf, _sum(excess))


def forward_kl(rows):
    p, q = rows.p, rows.q
    return _kl(p, rows.log_ratio()), [(1.0, q), (-1.0, p)]


def reverse_kl(rows):
    d = rows.log_ratio()
    return _kl(rows.q, -d), _through_softmax(rows.q, d)


def _kl_to_mixture(p, d, share):
    """KL(p || m), m = (1 - share) p + share q, d = log(q / p); and m / p - 1."""
    growth = ops.expm1(ops.minimum(d, _FAR))
    growth *= share
    excess = _near(d) * growth
    excess -= ops.log1p(growth)
    excess *= p
    return _sum(excess), growth


def jensen_shannon(rows, teacher_weight):
    """sum_v [w p log(p / m) + (1 - w) q log(q / m)], m = w p + (1 - w) q.

    Computed from q / m = 1 + x and p / m = 1 - x (1 - w) / w, with
    x = (q - p) / (p + q (1 - w) / w). No log-probabilities are needed: near agreement a
    rounding error in x changes the two terms of a class in opposite directions, so that
    no digits are lost, unlike in a single KL divergence; far from agreement the model
    that nearly excludes a class adds little to that class's sum.
    """
    w = teacher_weight
    odds = (1.0 - w) / w
    mixture = rows.p + (rows.q if odds == 1.0 else odds * rows.q)
    from_q = rows.q - rows.p
    from_q /= at_least(mixture, _NOTHING)
    # Where a model excludes a class, one of the two ratios is 0: its log is -inf.
    from_q = within(from_q, -_ALL_BUT_1, _ALL_BUT_1 / odds)
    from_p = log1p_of(-odds * from_q)
    from_q = log1p_of(from_q)
    from_p *= rows.p
    from_q *= rows.q
    teacher, student = _sum(from_p), _sum(from_q)
    gradient = [(1.0 - w, from_q), ((w - 1.0) * _column(student), rows.q)]
    return w * teacher + (1.0 - w) * student, gradient


def skew_forward_kl(rows, skew):
    value, growth = _kl_to_mixture(rows.p, rows.log_ratio(), 1.0 - skew)
    return value, _through_softmax(rows.q, (skew - 1.0) / (1.0 + growth))


def skew_reverse_kl(rows, skew):
    value, growth = _kl_to_mixture(rows.q, -rows.log_ratio(), 1.0 - skew)
    derivative = -ops.log1p(growth) - skew / (1.0 + growth)
    return value, _through_softmax(rows.q, derivative)


def total_variation(rows):
    classes = ops.shape(rows.q)[-1]
    rounding = sum(rounding_of(largest, classes) for largest in rows.largest)
    gap = gap_of(rows.p, rows.q, rounding)
    gradient = _through_softmax(rows.q, ops.sign(gap), 0.5)
    return 0.5 * _sum(ops.abs(gap)), gradient


def mse_probs(rows, mean_over_vocabulary):
    scale = 1.0 / rows.q.shape[-1] if mean_over_vocabulary else 1.0
    gap = rows.q - rows.p
    gradient = _through_softmax(rows.q, gap, 2.0 * scale)
    return scale * _sum(gap * gap), gradient


def cosine_probs(rows):
    length = ops.sqrt(_sum(rows.q * rows.q))
    teacher = rows.p / _column(ops.sqrt(_sum(rows.p * rows.p)))
    student = rows.q / _column(length)
    gap = student - teacher
    value = 0.5 * _sum(gap * gap)
    # g = (cos q/|q| - p/|p|) / |q| with cos = 1 - value, so that nothing cancels at
    # agreement. The energy does not depend on the scale of q, so sum_v q g is 0.
    gap -= _column(value) * student
    gap *= student
    return value, [(1.0, gap)]
