"""Energies that are squared or cosine distances of probabilities or of logits.

On probabilities they behave like the divergences, without the logarithm: bounded, and
dominated by the probable classes. On logits every class has the same weight, probable
or not, which transfers the ranking of the tail. Logits are only defined up to a shift,
and models differ in their scale, so the logit energies standardise each position by
default (Z-score). They then do not depend on the student's confidence, which a second
energy or the cross-entropy has to teach. With Z-scores the mean squared error is
2 (V - 1) / V times the cosine energy (at ddof = 1): under a learned weight, the same
loss.

All are written as sums of squared differences. The formula 1 - cos cancels to rounding
noise, of either sign, when the student approaches its teacher; the equal
0.5 |a / |a| - b / |b||^2 is exactly 0 at equality.
"""

import math

import keras
from keras import ops

from keras_betakd.energies import closed_forms
from keras_betakd.energies.base import Energy, checked_number
from keras_betakd.energies.probability import ProbabilityEnergy

_REGISTER = keras.saving.register_keras_serializable(package="keras_betakd")


def _at_least(x, floor):
    """max(x, floor), NaN for NaN; `ops.maximum` rounds float64 on torch and JAX."""
    return ops.where(x < floor, floor, x)


def unit(x, floor=0.0):
    """x / |x| over the last axis, with |x|^2 no smaller than `floor`."""
    square = ops.sum(ops.square(x), axis=-1, keepdims=True)
    return x / ops.sqrt(_at_least(square, floor))


def squared_distance(a, b):
    """|a - b|^2 over the last axis."""
    return ops.sum(ops.square(a - b), axis=-1)


def _common_support(teacher, student):
    """Removes the classes that both models exclude (logit -inf).

    A class that a single model excludes stays -inf: logit distances are undefined there
    and become NaN or inf.

    Returns:
        `(teacher, student, support, count)`: the logits with 0 in the removed classes,
        a mask of the classes that are left, (..., V), and their number, (..., 1).
    """
    support = (teacher != -math.inf) | (student != -math.inf)
    mask = ops.cast(support, teacher.dtype)
    count = ops.sum(mask, axis=-1, keepdims=True)
    zero = ops.zeros_like(teacher)
    teacher = ops.where(support, teacher, zero)
    student = ops.where(support, student, zero)
    return teacher, student, support, count


def _standardize(x, support, count, ddof, epsilon):
    """Z-scores over the `support`, with `epsilon` as floor of the standard deviation.

    The floor is applied to the variance, before the root, whose derivative is infinite
    at 0. That keeps the gradient finite where all logits are equal, as for a head that
    is initialised with zeros, and, unlike a constant added to the deviation, changes
    nothing elsewhere.
    """
    mean = ops.sum(x, axis=-1, keepdims=True) / count
    centred = ops.where(support, x - mean, ops.zeros_like(x))
    square = ops.sum(ops.square(centred), axis=-1, keepdims=True)
    variance = square / _at_least(count - ddof, 1.0)
    return centred / ops.sqrt(_at_least(variance, epsilon**2))


def cosine_probs(log_p, log_q):
    """1 - p.q / (|p| |q|), between 0 and 1."""
    return 0.5 * squared_distance(unit(ops.exp(log_p)), unit(ops.exp(log_q)))


def mse_probs(log_p, log_q, mean_over_vocabulary=False):
    """sum (p - q)^2, at most 2, or its mean over the V classes."""
    total = squared_distance(ops.exp(log_p), ops.exp(log_q))
    if not mean_over_vocabulary:
        return total
    # Not `ops.mean`, which rounds float64 to float32 on torch and JAX.
    return total / ops.cast(ops.shape(log_p)[-1], log_p.dtype)


def mse_logits(teacher, student, standardize=True, ddof=1, epsilon=1e-3):
    """Mean over V of the squared difference of the (standardised) logits."""
    teacher, student, support, count = _common_support(teacher, student)
    if standardize:
        teacher = _standardize(teacher, support, count, ddof, epsilon)
        student = _standardize(student, support, count, ddof, epsilon)
    return squared_distance(teacher, student) / ops.squeeze(count, axis=-1)


def cosine_logits(teacher, student, standardize=True, epsilon=1e-3):
    """1 - cosine of the (centred) logits; centred, that is 1 - Pearson correlation."""
    teacher, student, support, count = _common_support(teacher, student)
    if standardize:
        teacher = _standardize(teacher, support, count, 1, epsilon)
        student = _standardize(student, support, count, 1, epsilon)
        # Squared length of a Z-score at ddof = 1.
        scale = _at_least(ops.squeeze(count, axis=-1) - 1.0, 1.0)
    else:
        floor = count * epsilon**2
        teacher, student, scale = unit(teacher, floor), unit(student, floor), 1.0
    return 0.5 * squared_distance(teacher, student) / scale


@_REGISTER
class CosineProbsEnergy(ProbabilityEnergy):
    """Cosine distance of the two probability vectors, the energy to start with.

    Use it as the default: it is bounded, smooth, 0 only at agreement, and not dominated
    by classes that both models find improbable.

        l = 1 - p.q / (|p| |q|),   p = softmax(y_true / temperature),
                                   q = softmax(y_pred / temperature)

    Shapes: `y_true` and `y_pred` are `(..., V)`; `call` returns `(...)`, a number
    between 0 and 1 per token, without unit.

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
    >>> energy = CosineProbsEnergy()
    >>> round(float(energy(ops.log(p), ops.log(q))), 4)
    0.404

    Reference: Beta-KD 2026 (arXiv:2603.21426), energy "cosine-probs".
    """

    def pointwise(self, log_p, log_q):
        return cosine_probs(log_p, log_q)

    def closed_form(self, rows):
        return closed_forms.cosine_probs(rows)


@_REGISTER
class MSEProbsEnergy(ProbabilityEnergy):
    """Squared error of the probabilities, a Brier score against the teacher.

    Use it as a bounded energy that, unlike the cosine, is smaller where both models are
    uncertain, since all probabilities are small there.

        l = sum_v (p_v - q_v)^2,   p = softmax(y_true / temperature),
                                   q = softmax(y_pred / temperature)

    divided by V with `mean_over_vocabulary=True`. That mean is at most 2 / V, 6e-5 at
    V = 32000, so beta* = d / (2 l) lies beyond most bounds on a learned weight.

    Shapes: `y_true` and `y_pred` are `(..., V)`; `call` returns `(...)`, a number
    between 0 and 2 per token, without unit.

    Masking: see `Energy`. Temperature, its T^2 factor and their effect on
    beta* = d / (2 l): see `ProbabilityEnergy`.

    Args:
        mean_over_vocabulary: Whether to divide by V, the width of the inputs
            (excluded classes included). Defaults to `False`.
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
    >>> energy = MSEProbsEnergy(from_logits=False)
    >>> round(float(energy(p, q)), 4)
    0.38

    Reference: Brier 1950; Beta-KD 2026 (arXiv:2603.21426), energy "mse-probs"
    (which takes the mean).
    """

    def __init__(self, mean_over_vocabulary: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.mean_over_vocabulary = mean_over_vocabulary

    def pointwise(self, log_p, log_q):
        return mse_probs(log_p, log_q, self.mean_over_vocabulary)

    def closed_form(self, rows):
        return closed_forms.mse_probs(rows, self.mean_over_vocabulary)

    def get_config(self):
        return {
            **super().get_config(),
            "mean_over_vocabulary": self.mean_over_vocabulary,
        }


class _LogitEnergy(Energy):
    """Base of the energies between logits: standardisation and the floor `epsilon`."""

    def __init__(self, standardize=True, epsilon=1e-3, **kwargs):
        super().__init__(**kwargs)
        self.standardize = standardize
        self.epsilon = checked_number("epsilon", epsilon)

    def get_config(self):
        return {
            **super().get_config(),
            "standardize": self.standardize,
            "epsilon": self.epsilon,
        }


@_REGISTER
class CosineLogitsEnergy(_LogitEnergy):
    """Cosine distance of the logits; standardised, 1 minus their Pearson correlation.

    Use it to transfer the teacher's ranking of all classes, whatever the scale of the
    student's logits. It does not teach confidence: student logits a z + b, a > 0, of
    the teacher's logits z have an energy of 0.

        l = 1 - u.w / (|u| |w|)

    with u and w the logits `y_true` and `y_pred`, minus their mean over V if
    `standardize`. There is no temperature, since the angle does not depend on it, and
    beta* = d / (2 l) depends on l alone.

    Shapes: `y_true` and `y_pred` are `(..., V)`; `call` returns `(...)`, a number
    between 0 and 2 per token, without unit. Classes that are -inf in both models are
    left out; one that is -inf in a single model makes the result NaN.

    Masking: see `Energy`.

    Args:
        standardize: Whether to subtract the mean of each position first. Defaults to
            `True`.
        epsilon: Positive floor of the standard deviation, in logits: a length |u| is
            taken as at least epsilon sqrt(V - 1) (epsilon sqrt(V) without
            `standardize`). It bounds the gradient where all logits are equal; where
            those of the student are, the energy is 1/2. Defaults to 1e-3.
        name, reduction, dtype: See `Energy`.

    Raises:
        ValueError: for an invalid argument, or for inputs of different shape.

    Example:

    >>> from keras import ops
    >>> teacher = ops.array([[2.0, 1.0, 0.0]])
    >>> student = ops.array([[0.0, 1.0, 2.0]])
    >>> energy = CosineLogitsEnergy()
    >>> round(float(energy(teacher, student)), 4)  # perfectly anti-correlated
    2.0

    Reference: Beta-KD 2026 (arXiv:2603.21426), energy "cosine"; correlation in place
    of KL, DIST, Huang et al. 2022 (arXiv:2205.10536), section 3.
    """

    def pointwise(self, teacher, student):
        return cosine_logits(teacher, student, self.standardize, self.epsilon)


@_REGISTER
class MSELogitsEnergy(_LogitEnergy):
    """Mean squared error of the logits, standardised or raw.

    Use it standardised for the same purpose as `CosineLogitsEnergy`, of which it is
    2 (V - 1) / V times the value at `ddof=1`; raw, where the student should match the
    scale of the teacher's logits, too.

        l = (1 / V) sum_v (u_v - w_v)^2

    with u and w the logits `y_true` and `y_pred`, as Z-scores (z - mean) / std over V
    if `standardize`. There is no temperature: it cancels in the Z-score, and on raw
    logits it would only divide l by T^2, which beta* = d / (2 l) undoes.

    Shapes: `y_true` and `y_pred` are `(..., V)`; `call` returns `(...)`, per token:
    without unit and at most 4 if standardised, in squared logits if raw. Classes that
    are -inf in both models are left out and not counted in V; one that is -inf in a
    single model makes the result NaN (inf if raw).

    Masking: see `Energy`.

    Args:
        standardize: Whether to compare Z-scores. Defaults to `True`.
        ddof: 1 for the unbiased variance, with divisor V - 1; 0 for divisor V.
            Defaults to 1.
        epsilon: Positive floor of the standard deviation, in logits, which bounds the
            gradient where all logits are equal. Without effect on raw logits. Defaults
            to 1e-3.
        name, reduction, dtype: See `Energy`.

    Raises:
        ValueError: for an invalid argument, or for inputs of different shape.

    Example:

    >>> from keras import ops
    >>> teacher = ops.array([[2.0, 1.0, 0.0]])
    >>> student = ops.array([[0.0, 1.0, 2.0]])
    >>> raw = MSELogitsEnergy(standardize=False)
    >>> round(float(raw(teacher, student)), 4)
    2.6667

    Reference: Ba and Caruana 2014 (arXiv:1312.6184), equation 1; Z-scores, Sun et
    al. 2024 (arXiv:2403.01427); Beta-KD 2026 (arXiv:2603.21426), energy "mse".
    """

    def __init__(
        self, standardize: bool = True, ddof: int = 1, epsilon: float = 1e-3, **kwargs
    ):
        super().__init__(standardize=standardize, epsilon=epsilon, **kwargs)
        if ddof not in (0, 1):
            raise ValueError(f"`ddof` must be 0 or 1. Received: ddof={ddof}")
        self.ddof = ddof

    def pointwise(self, teacher, student):
        return mse_logits(teacher, student, self.standardize, self.ddof, self.epsilon)

    def get_config(self):
        return {**super().get_config(), "ddof": self.ddof}
