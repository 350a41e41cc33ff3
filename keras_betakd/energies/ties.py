"""Gaps of probabilities, where what differs by rounding alone is no gap.

The derivative of |p - q| jumps between -1 and 1 at p = q. A compiler may round the
softmax of the teacher and that of equal logits of the student differently, and the sign
of what is left would be a gradient of full size towards nothing.
"""

import keras
from keras import ops

# Rounding moves a logit z by up to eps |z| / 2 and so its probability by as much,
# relative to it: for both models together, and logits of up to 64 in size, the gap to
# (p + q).
_ROUNDING = {"float32": 32 * 2.0**-23, "float64": 32 * 2.0**-52}


def gap_of(p, q):
    """q - p, 0 where the two differ by no more than rounding.

    Args:
        p, q: probabilities of the same shape.
    """
    difference = q - p
    rounding = _ROUNDING[keras.backend.standardize_dtype(p.dtype)] * (p + q)
    tie = ops.abs(difference) <= rounding
    return ops.where(tie, ops.zeros_like(difference), difference)
