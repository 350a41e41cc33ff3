"""Adaptive KL: forward and reverse KL, weighted at each position by their gaps."""

import keras
from keras import ops

from keras_betakd.energies.base import checked_number
from keras_betakd.energies.divergences import forward_kl, mixed_kl, reverse_kl
from keras_betakd.energies.probability import ProbabilityEnergy

HEAD_RULES = ("nucleus", "prefix")


def head_of(p, mass, rule="nucleus"):
    """1 for the most probable classes that together hold `mass` of `p`, else 0.

    Args:
        p: (..., V), probabilities.
        mass: number between 0 and 1.
        rule: `"nucleus"`, the smallest set of the most probable classes with at least
            `mass`; or `"prefix"`, the largest such set with at most `mass`, which
            always contains the most probable class.

    Returns:
        (..., V), in the dtype of `p`.
    """
    order = ops.argsort(-p, axis=-1)
    sorted_p = ops.take_along_axis(p, order, axis=-1)
    until = ops.cumsum(sorted_p, axis=-1)
    first = ops.zeros_like(until[..., :1])
    if rule == "nucleus":
        before = ops.concatenate([first, until[..., :-1]], axis=-1)
        chosen = before < mass
    else:
        first = ops.cast(first, "bool")
        rest = until[..., 1:] <= mass
        chosen = ops.concatenate([ops.logical_not(first), rest], axis=-1)
    # From the sorted order back to that of the vocabulary.
    return ops.take_along_axis(
        ops.cast(chosen, p.dtype), ops.argsort(order, axis=-1), axis=-1
    )


@keras.saving.register_keras_serializable(package="keras_betakd")
class AdaptiveKLEnergy(ProbabilityEnergy):
    """Forward and reverse KL, weighted by where teacher and student disagree (AKL).

    The forward KL fits the teacher's probable classes (its head) first, the reverse KL
    the others (its tail). At each position the one whose part of the vocabulary has the
    larger gap between the models gets the larger weight:

        l = c KL(p || q) + (1 - c) KL(q || p)
        c = sum_{v in head} |p_v - q_v| / sum_v |p_v - q_v|

    with p = softmax(y_true / temperature), q = softmax(y_pred / temperature), and the
    head the classes that hold `head_mass` of p. No gradient flows through c. Where the
    models agree the energy is 0 (and c is 1/2).

    Shapes: `y_true` and `y_pred` are `(..., V)`; `call` returns `(...)`, in nats per
    token; +inf if one model excludes a class (logit -inf) that the other allows.

    Masking: see `Energy`. Temperature, its T^2 factor and their effect on
    beta* = d / (2 l): see `ProbabilityEnergy`.

    Args:
        head_mass: number between 0 and 1, mu in the paper. Defaults to 0.5.
        head_rule: `"nucleus"` (default), the smallest set of the teacher's most
            probable classes with at least `head_mass`, as in the paper; or `"prefix"`,
            those whose cumulative probability is at most `head_mass`, and always the
            most probable one, as in the authors' released code.
        temperature, scale_by_t2, from_logits: See `ProbabilityEnergy`.
        name, reduction, dtype: See `Energy`.

    Raises:
        ValueError: for an invalid argument, or for inputs of different shape.

    Example:

    >>> from keras import ops
    >>> p = ops.array([[0.7, 0.2, 0.1]])
    >>> q = ops.array([[0.2, 0.5, 0.3]])
    >>> energy = AdaptiveKLEnergy(from_logits=False)
    >>> round(float(energy(p, q)), 4)
    0.5605

    Reference: Wu et al. 2024, "Rethinking Kullback-Leibler divergence in knowledge
    distillation for large language models" (arXiv:2404.02657), section 4.
    """

    def __init__(self, head_mass: float = 0.5, head_rule: str = "nucleus", **kwargs):
        super().__init__(**kwargs)
        self.head_mass = checked_number("head_mass", head_mass, high=1.0)
        if head_rule not in HEAD_RULES:
            raise ValueError(
                f"`head_rule` must be one of {HEAD_RULES}. Received: "
                f"head_rule={head_rule!r}"
            )
        self.head_rule = head_rule

    def pointwise(self, log_p, log_q):
        weight = self.forward_weight(log_p, log_q)
        return mixed_kl(weight, forward_kl(log_p, log_q), reverse_kl(log_p, log_q))

    def forward_weight(self, log_p, log_q):
        """c, the weight of the forward KL: `(..., V)` twice to `(...)`."""
        p, q = ops.exp(log_p), ops.exp(ops.stop_gradient(log_q))
        gap = ops.abs(p - q)
        head = ops.sum(gap * head_of(p, self.head_mass, self.head_rule), axis=-1)
        total = ops.sum(gap, axis=-1)
        agree = total == 0
        share = head / ops.where(agree, ops.ones_like(total), total)
        return ops.where(agree, 0.5 * ops.ones_like(share), share)

    def get_config(self):
        return {
            **super().get_config(),
            "head_mass": self.head_mass,
            "head_rule": self.head_rule,
        }
