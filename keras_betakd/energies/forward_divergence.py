"""Divergence or cross-entropy: whether an energy counts the teacher's own entropy.

Much of the literature trains on the cross-entropy -sum p log q and calls it a KL
divergence. The two differ by the teacher's entropy H(p), which no student can change,

    -sum_v p_v log q_v = KL(p || q) + H(p),

so a student with a fixed weight learns the same from either. A learned weight does not:
it settles at beta* = d / (2 l), and with the cross-entropy l never falls below H(p). At
KL = 0.001 and H = 1.4 nats, d = 1, the divergence has beta* = 500 and the cross-entropy
0.36. The cross-entropy form thereby trusts unsure teachers less, and its prior
exp(-beta l) is no longer largest, 1, at agreement, as -(d / 2) log(beta) supposes
(Beta-KD, arXiv 2603.21426). It is here to repeat published runs.
"""

from keras import ops

from keras_betakd.energies.probability import ProbabilityEnergy

FORMS = ("divergence", "cross_entropy")


def expect_form(form):
    """`form`, if it is one."""
    if form not in FORMS:
        raise ValueError(f"`form` must be one of {FORMS}. Received: form={form!r}")
    return form


def entropy(log_p):
    """-sum p log p in nats, `(..., V)` to `(...)`; an excluded class adds nothing."""
    p = ops.exp(log_p)
    allowed = p > 0
    return -ops.sum(p * ops.where(allowed, log_p, ops.zeros_like(p)), axis=-1)


class ForwardDivergenceEnergy(ProbabilityEnergy):
    """Base of the energies of the form KL(p || .), with `form` to add H(p).

    Args:
        form: `"divergence"` (default) or `"cross_entropy"`.
        temperature, **kwargs: See `ProbabilityEnergy`.
    """

    def __init__(self, temperature=1.0, form="divergence", **kwargs):
        super().__init__(temperature=temperature, **kwargs)
        self.form = expect_form(form)

    def floor(self, log_p):
        """What to add to the divergence: 0, or the teacher's entropy, `(...)`.

        Args:
            log_p: function that makes them, called only if they are needed.
        """
        if self.form == "divergence":
            return 0.0
        return entropy(ops.stop_gradient(log_p()))

    def get_config(self):
        return {**super().get_config(), "form": self.form}
