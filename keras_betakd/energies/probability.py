"""`ProbabilityEnergy`, the base class of the energies that compare probabilities.

It turns logits into log-probabilities at a temperature, and calls the closed form of an
energy's gradient where it has one (`keras_betakd.energies.closed_forms`).
"""

import math

from keras import ops

from keras_betakd.energies.base import Energy, checked_number
from keras_betakd.energies.logit_rows import ProbabilityRows


class ProbabilityEnergy(Energy):
    """Base class of the energies that compare probabilities.

    `pointwise(log_p, log_q)` receives the log-probabilities of teacher and student,

        log_p = log softmax(y_true / T),   log_q = log softmax(y_pred / T)

    with T = `temperature`. A class that both models exclude (logit -inf) adds nothing
    to the energy; one that a single model excludes gives the exact value, which is
    infinite for a KL divergence.

    Gradients fall like 1/T^2 as the temperature grows; `scale_by_t2=True` multiplies
    the energy by T^2 to undo that (Hinton et al. 2015, section 2). Under a learned
    weight the factor has no effect at the optimum, since beta* = d / (2 l) changes by
    1/T^2 in return; it changes how far beta* is from the initial beta and the bounds.

    Shapes, masking and precision: see `Energy`.

    Args:
        temperature: Positive number T. Defaults to 1.
        scale_by_t2: Whether to multiply the energy by T^2. Defaults to `False`.
        from_logits: Whether the inputs are logits. If `False` they are probabilities,
            which are raised to the power 1/T and renormalised; a negative one gives
            NaN. Defaults to `True`.
        name, reduction, dtype: See `Energy`.

    Raises:
        ValueError: if `temperature` is not positive and finite; see also `Energy`.

    Example:

    >>> class SquaredHellinger(ProbabilityEnergy):
    ...     def pointwise(self, log_p, log_q):
    ...         gap = ops.exp(log_p / 2) - ops.exp(log_q / 2)
    ...         return 0.5 * ops.sum(gap * gap, axis=-1)
    >>> energy = SquaredHellinger(from_logits=False)
    >>> float(energy(ops.array([[1.0, 0.0]]), ops.array([[0.0, 1.0]])))
    1.0

    Reference: the temperature is that of Hinton et al. 2015 (arXiv:1503.02531).
    """

    # A method that takes `ProbabilityRows` and returns value and gradient, as the
    # functions of `keras_betakd.energies.closed_forms` do; `None` for autodiff.
    closed_form = None

    def __init__(
        self,
        temperature: float = 1.0,
        scale_by_t2: bool = False,
        from_logits: bool = True,
        name: str | None = None,
        reduction: str = "mean_with_sample_weight",
        dtype: str | None = None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.temperature = checked_number("temperature", temperature)
        self.scale_by_t2 = scale_by_t2
        self.from_logits = from_logits

    def represent(self, logits):
        return log_probabilities(logits, self.temperature, self.from_logits)

    def call(self, y_true, y_pred):
        """Returns the energy of each position: `(..., V)` twice to `(...)`."""
        values = super().call(y_true, y_pred)
        return values * self.temperature**2 if self.scale_by_t2 else values

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        # A subclass with a formula of its own must not inherit another's closed form.
        redefined = {"pointwise", "represent", "call"} & set(vars(cls))
        if redefined and "closed_form" not in vars(cls):
            cls.closed_form = None

    def value_and_gradient(self, teacher, student):
        if self.closed_form is None or not self.from_logits:
            return super().value_and_gradient(teacher, student)
        rows = ProbabilityRows(teacher, student, self.temperature)
        value, parts = self.closed_form(rows)
        scale = self.temperature**2 if self.scale_by_t2 else 1.0
        parts = [(factor * (scale / self.temperature), x) for factor, x in parts]
        return value if scale == 1.0 else scale * value, parts

    def get_config(self):
        return {
            **super().get_config(),
            "temperature": self.temperature,
            "scale_by_t2": self.scale_by_t2,
            "from_logits": self.from_logits,
        }


def log_probabilities(x, temperature=1.0, from_logits=True):
    """log softmax(x / temperature) over the last axis, with -inf for excluded classes.

    With `from_logits=False`, `x` holds probabilities p; they become p^(1/temperature),
    renormalised. A negative entry gives NaN, so that logits passed by mistake do not
    give a number that looks like a loss.
    """
    if not from_logits:
        positive = x > 0
        # The inner selection keeps log(0), whose derivative is infinite, out of the
        # gradient.
        logs = ops.log(ops.where(positive, x, ops.ones_like(x)))
        excluded = ops.where(x == 0, -math.inf, math.nan)
        x = ops.where(positive, logs, ops.cast(excluded, x.dtype))
    if temperature != 1.0:
        x = x / temperature
    return ops.log_softmax(x, axis=-1)
