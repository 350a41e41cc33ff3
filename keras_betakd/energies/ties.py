"""Energies of |p - q|, for which what differs by rounding alone is a tie.

The derivative of |p - q| jumps between -1 and 1 at p = q. A compiler may round the
softmaxes of equal logits of teacher and student differently, and a constant added to
all logits, which changes no probability, rounds them as well. The sign of what is left
would be a gradient of full size towards nothing.
"""

import keras
from keras import ops

from keras_betakd.energies.probability import ProbabilityEnergy

_EPS = {"float32": 2.0**-23, "float64": 2.0**-52}


def rounding_of(largest, classes):
    """The relative rounding error of the probabilities of one model: (..., 1).

    A logit z is known to eps |z| / 2 and its log-probability to eps |log p| / 2; their
    exponential to as much, relative to it, and to 2 eps for itself and its sum. Of the
    probable classes, z is near the largest logit, and p no smaller than about 1 / V.

    Args:
        largest: (..., 1), the largest logit.
        classes: V.
    """
    eps = _EPS[keras.backend.standardize_dtype(largest.dtype)]
    log_classes = ops.log(ops.cast(classes, largest.dtype))
    return eps * (2.0 + 0.5 * (ops.abs(largest) + log_classes))


def gap_of(p, q, rounding):
    """q - p, 0 where they differ by no more than `rounding` times their sum.

    Args:
        p, q: (..., V), probabilities.
        rounding: (..., 1), the sum of `rounding_of` of the two.
    """
    gap = q - p
    return ops.where(ops.abs(gap) <= rounding * (p + q), ops.zeros_like(gap), gap)


class GapEnergy(ProbabilityEnergy):
    """Base class of the energies of |p - q|.

    `pointwise` takes, of each model, a pair of its log-probabilities and the
    `rounding_of` them.

    Args: see `ProbabilityEnergy`.
    """

    def represent(self, logits):
        largest = ops.max(logits, axis=-1, keepdims=True) / self.temperature
        if not self.from_logits:  # probabilities, known to 2 eps
            largest = ops.zeros_like(largest)
        rounding = rounding_of(ops.stop_gradient(largest), ops.shape(logits)[-1])
        return super().represent(logits), rounding
