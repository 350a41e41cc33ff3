"""Universal logit distillation, for models with different tokenizers."""

import math

import keras
from keras import ops

from keras_betakd.energies.ties import GapEnergy, gap_of


@keras.saving.register_keras_serializable(package="keras_betakd")
class ULDEnergy(GapEnergy):
    """Distance of sorted probabilities, for models with different tokenizers.

        l = sum_i |p_(i) - q_(i)|

    with p_(1) >= p_(2) >= ... the teacher's probabilities (of `y_true`) in descending
    order, q_(1) >= q_(2) >= ... the student's (of `y_pred`), and zeros appended to the
    shorter of the two. Classes are compared by rank and not by identity, so the
    vocabularies need nothing in common. It is the Wasserstein distance of the two
    distributions under a cost of 1 for any two classes, which sorting gives in closed
    form.

    Shapes: `y_true` is `(..., V_t)`, `y_pred` `(..., V_s)` with the same leading axes;
    `call` returns `(...)`, a number between 0 and 2 per token, without unit. The energy
    takes no logarithm of a probability. Ranks at which the two differ by no more than
    rounding, about eps (4 + |z| + log V) (p + q) for logits of size |z|, are taken as
    equal: their part of value and gradient is 0.

    In a distiller, teacher and student are compared at the tokens before which both
    have produced the same text (`DistillationPreprocessor(cross_tokenizer=True)`, which
    the distiller creates itself if every energy takes different vocabularies), and the
    cross-entropy runs over all of the student's own tokens.

    Masking: see `Energy`. Temperature, its T^2 factor and their effect on
    beta* = d / (2 l): see `ProbabilityEnergy`.

    Args:
        temperature: Positive number T. Defaults to 1.
        scale_by_t2, from_logits: See `ProbabilityEnergy`.
        name, reduction, dtype: See `Energy`.

    Raises:
        ValueError: for an invalid argument, or if the leading axes differ.

    Example:

    >>> teacher = ops.log(ops.array([[0.7, 0.2, 0.1]]))
    >>> student = ops.log(ops.array([[0.25, 0.75]]))
    >>> round(float(ULDEnergy()(teacher, student)), 4)  # 0.05 + 0.05 + 0.1
    0.2

    Reference: Boizard et al., Towards Cross-Tokenizer Distillation: the Universal Logit
    Distillation Loss for LLMs, arXiv 2402.12030 (2024), equation 4.
    """

    crosses_vocabularies = True
    fuses = False  # a tile of the fused head has the classes of one vocabulary

    def check_shapes(self, teacher, student):
        leading = tuple(teacher.shape[:-1]), tuple(student.shape[:-1])
        known = [a == b or None in (a, b) for a, b in zip(*leading, strict=False)]
        if len(leading[0]) != len(leading[1]) or not all(known):
            raise ValueError(
                "Teacher and student must have the same number of rows. Received: "
                f"y_true.shape={tuple(teacher.shape)}, "
                f"y_pred.shape={tuple(student.shape)}"
            )

    def pointwise(self, teacher, student):
        (log_p, rounding), (log_q, theirs) = teacher, student
        size = max(log_p.shape[-1], log_q.shape[-1])
        p, q = (ops.exp(_filled(ops.sort(x, axis=-1), size)) for x in (log_p, log_q))
        return ops.sum(ops.abs(gap_of(p, q, rounding + theirs)), axis=-1)


def _filled(ascending, size):
    """Prepends classes of probability 0 to log-probabilities, up to `size` classes."""
    missing = size - ascending.shape[-1]
    widths = [(0, 0)] * (len(ascending.shape) - 1) + [(missing, 0)]
    return ops.pad(ascending, widths, constant_values=-math.inf)
