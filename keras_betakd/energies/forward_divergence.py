"""Base of the energies KL(p || .), each also available as a cross-entropy.

Much of the literature trains on the cross-entropy -sum p log q and calls it a KL
divergence. The two differ by the teacher's entropy H(p), which does not depend on the
student,

    -sum_v p_v log q_v = KL(p || q) + H(p),

so with a fixed weight the student learns the same from either. A learned weight does
not: it converges to beta* = d / (2 l), and with the cross-entropy l is never below
H(p). At KL = 0.001 and H = 1.4 nats, d = 1, beta* is 500 for the divergence and 0.36
for the cross-entropy. So the cross-entropy gives uncertain teachers a smaller weight,
and the maximum of its prior exp(-beta l), at agreement, is no longer 1, as the
-(d / 2) log(beta) term assumes (Beta-KD, arXiv 2603.21426). It is here to repeat
published runs.
"""

from keras import ops

from keras_betakd.energies.probability import ProbabilityEnergy

FORMS = ("divergence", "cross_entropy")


def expect_form(form):
    """Returns `form`; raises if it is neither of `FORMS`."""
    if form not in FORMS:
        raise ValueError(f"`form` must be one of {FORMS}. Received: form={form!r}")
    return form


def entropy(log_p):
    """-sum p log p in nats, `(..., V)` to `(...)`; an excluded class adds 0."""
    p = ops.exp(log_p)
    allowed = p > 0
    return -ops.sum(p * ops.where(allowed, log_p, ops.zeros_like(p)), axis=-1)


class ForwardDivergenceEnergy(ProbabilityEnergy):
    """Base of the energies KL(p || .), to which `form` can add the entropy H(p).

    Args:
        temperature: See `ProbabilityEnergy`.
        form: `"divergence"` (default), or `"cross_entropy"` to add H(p).
        **kwargs: See `ProbabilityEnergy`.
    """

    def __init__(self, temperature=1.0, form="divergence", **kwargs):
        super().__init__(temperature=temperature, **kwargs)
        self.form = expect_form(form)

    def floor(self, log_p):
        """What `form` adds to the divergence: 0, or H(p) without gradient, `(...)`.

        Args:
            log_p: function that returns the log-probabilities of p, called only if
                they are needed.
        """
        if self.form == "divergence":
            return 0.0
        return entropy(ops.stop_gradient(log_p()))

    def get_config(self):
        return {**super().get_config(), "form": self.form}
