"""Entropy-aware KL: reverse KL where the teacher is sure, else forward KL."""

import keras
from keras import ops

from keras_betakd.energies import closed_forms
from keras_betakd.energies.base import checked_number
from keras_betakd.energies.divergences import forward_kl, mixed_kl, reverse_kl
from keras_betakd.energies.forward_divergence import entropy
from keras_betakd.energies.probability import ProbabilityEnergy


@keras.saving.register_keras_serializable(package="keras_betakd")
class EntropyAwareKLEnergy(ProbabilityEnergy):
    """Forward and reverse KL, weighted by the teacher's entropy (after EOPD).

    The reverse KL makes the student commit to one of the teacher's likely classes. That
    is right where the teacher is sure; where several continuations are plausible it
    takes the student's diversity, and the forward KL, which covers them all, is better.
    Use it on the student's own answers (`keras_betakd.StudentAnswers`), for which it
    was proposed:

        l = h KL(p || q) + (1 - h) KL(q || p),   h = min(1, H(p) / full_entropy)

    with p = softmax(y_true / temperature), q = softmax(y_pred / temperature) and
    H(p) = -sum_v p_v log p_v. No gradient flows into the teacher, so h is a constant.

    Shapes: `y_true` and `y_pred` are `(..., V)`; `call` returns `(...)`, in nats per
    token; +inf if one model excludes a class (logit -inf) that the other allows.

    Masking: see `Energy`. Temperature, its T^2 factor and their effect on
    beta* = d / (2 l): see `ProbabilityEnergy`.

    Args:
        full_entropy: positive number, the entropy in nats from which the forward KL
            alone counts, at the energy's temperature. Defaults to 1, a little more
            than that of a choice between two words (log 2 = 0.69).
        temperature, scale_by_t2, from_logits: See `ProbabilityEnergy`.
        name, reduction, dtype: See `Energy`.

    Raises:
        ValueError: for an invalid argument, or for inputs of different shape.

    Example:

    >>> from keras import ops
    >>> p = ops.array([[0.7, 0.2, 0.1]])
    >>> q = ops.array([[0.2, 0.5, 0.3]])
    >>> energy = EntropyAwareKLEnergy(from_logits=False)
    >>> round(float(energy(p, q)), 4)
    0.5746

    Reference: Jin et al., "Entropy-aware on-policy distillation of language models",
    ICML 2026 (arXiv:2603.07079), whose forward KL is added to the reverse KL where the
    entropy is high. Here the two are mixed, so that the energy keeps its size and a
    beta its meaning.
    """

    def __init__(self, full_entropy: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.full_entropy = checked_number("full_entropy", full_entropy)

    def forward_weight(self, log_p):
        """h, the weight of the forward KL: `(..., V)` to `(...)`."""
        return ops.minimum(entropy(log_p) / self.full_entropy, 1.0)

    def pointwise(self, log_p, log_q):
        h = self.forward_weight(log_p)
        return mixed_kl(h, forward_kl(log_p, log_q), reverse_kl(log_p, log_q))

    def closed_form(self, rows):
        h = self.forward_weight(rows.log_p())
        forward, forward_gradient = closed_forms.forward_kl(rows)
        reverse, reverse_gradient = closed_forms.reverse_kl(rows)
        parts = [(h[..., None] * factor, x) for factor, x in forward_gradient]
        rest = 1.0 - h[..., None]
        parts += [(rest * factor, x) for factor, x in reverse_gradient]
        return mixed_kl(h, forward, reverse), parts

    def get_config(self):
        return {**super().get_config(), "full_entropy": self.full_entropy}
