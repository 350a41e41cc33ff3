"""Skew KL divergences, bounded by mixing one model into the other.

The functions take log-probabilities of shape `(..., V)` and return nats, `(...)`.
"""

import keras

from keras_betakd.energies import closed_forms
from keras_betakd.energies.base import checked_number
from keras_betakd.energies.bregman import kl_to_mixture
from keras_betakd.energies.forward_divergence import ForwardDivergenceEnergy
from keras_betakd.energies.probability import ProbabilityEnergy

_REGISTER = keras.saving.register_keras_serializable(package="keras_betakd")


def skew_forward_kl(log_p, log_q, skew=0.1):
    """KL(p || skew p + (1 - skew) q), in nats."""
    return kl_to_mixture(log_p, log_q, share=1.0 - skew)


def skew_reverse_kl(log_p, log_q, skew=0.1):
    """KL(q || (1 - skew) p + skew q), in nats."""
    return kl_to_mixture(log_q, log_p, share=1.0 - skew)


class _SkewEnergy(ProbabilityEnergy):
    """Base of the two skew divergences, with their argument `skew`."""

    def __init__(self, skew=0.1, **kwargs):
        super().__init__(**kwargs)
        self.skew = checked_number("skew", skew, high=1.0)

    def get_config(self):
        return {**super().get_config(), "skew": self.skew}


@_REGISTER
class SkewForwardKLEnergy(_SkewEnergy, ForwardDivergenceEnergy):
    """Skew forward KL: the forward KL to a mixture of student and teacher.

    Use it in place of `ForwardKLEnergy` where that is dominated by a few tokens on
    which the student is far from the teacher: the energy is at most -log(skew).

        l = KL(p || a p + (1 - a) q),   p = softmax(y_true / temperature),
                                        q = softmax(y_pred / temperature)

    with a = `skew`. Near agreement l = (1 - a)^2 KL(p || q).

    Shapes: `y_true` and `y_pred` are `(..., V)`; `call` returns `(...)`, in nats per
    token.

    Masking: see `Energy`. Temperature, its T^2 factor and their effect on
    beta* = d / (2 l): see `ProbabilityEnergy`.

    Args:
        skew: Weight a of the teacher in the mixture, above 0 and below 1. Defaults
            to 0.1.
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
    >>> teacher = ops.array([[0.0, -float("inf")]])
    >>> student = ops.array([[-float("inf"), 0.0]])
    >>> energy = SkewForwardKLEnergy(skew=0.1)
    >>> round(float(energy(teacher, student)), 4)  # the bound, -log(0.1)
    2.3026

    Reference: DistiLLM, Ko et al. 2024 (arXiv:2402.03898), section 3.1; Lee 2001.
    """

    def pointwise(self, log_p, log_q):
        return skew_forward_kl(log_p, log_q, self.skew) + self.floor(lambda: log_p)

    def closed_form(self, rows):
        value, parts = closed_forms.skew_forward_kl(rows, self.skew)
        return value + self.floor(rows.log_p), parts


@_REGISTER
class SkewReverseKLEnergy(_SkewEnergy):
    """Skew reverse KL: the reverse KL to a mixture of teacher and student.

    Use it in place of `ReverseKLEnergy` where the teacher gives almost no mass to the
    outputs of a student early in training: the energy is at most -log(skew).

        l = KL(q || (1 - a) p + a q),   p = softmax(y_true / temperature),
                                        q = softmax(y_pred / temperature)

    with a = `skew`. Near agreement l = (1 - a)^2 KL(q || p).

    Shapes: `y_true` and `y_pred` are `(..., V)`; `call` returns `(...)`, in nats per
    token.

    Masking: see `Energy`. Temperature, its T^2 factor and their effect on
    beta* = d / (2 l): see `ProbabilityEnergy`.

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

    def closed_form(self, rows):
        return closed_forms.skew_reverse_kl(rows, self.skew)
