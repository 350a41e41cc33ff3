"""`ProbabilityEnergy`: the base of the energies that compare probabilities."""

import math

from keras import ops

from keras_betakd.energies.base import Energy, checked_number
from keras_betakd.energies.logit_rows import ProbabilityRows


def log_probabilities(x, temperature=1.0, from_logits=True):
    """log softmax(x / temperature) over the last axis, with -inf for excluded classes.

    With `from_logits=False`, `x` holds probabilities; they are tempered as
    p^(1/temperature) and renormalised, and a negative entry gives NaN: logits passed
    by mistake must not turn into a number that looks like a loss.
    """
    if not from_logits:
        positive = x > 0
        # The inner selection keeps log(0), and its infinite slope, out of the gradient.
        logs = ops.log(ops.where(positive, x, ops.ones_like(x)))
        excluded = ops.where(x == 0, -math.inf, math.nan)
        x = ops.where(positive, logs, ops.cast(excluded, x.dtype))
    if temperature != 1.0:
        x = x / temperature
    return ops.log_softmax(x, axis=-1)


class ProbabilityEnergy(Energy):
    """Base class of the energies that compare probabilities.

    `pointwise(log_p, log_q)` receives the teacher's and the student's
    log-probabilities at `temperature`. A class excluded by both models (-inf in both)
    counts for nothing; one excluded by a single model gives the true value, which is
    infinite for a KL divergence.

    The temperature divides both logits. Gradients fall like 1/T^2 as it grows;
    `scale_by_t2=True` multiplies by T^2 to undo that (Hinton et al. 2015, section 2).
    Under a learned weight the factor has no effect at the optimum, since
    beta* = d / (2 l) moves by 1/T^2 in return; it moves the start and the bounds.

    Args:
        temperature: Positive number T. Defaults to 1.
        scale_by_t2: Whether to multiply the energy by T^2. Defaults to `False`.
        from_logits: Whether the inputs are logits. If `False` they are probabilities,
            which are tempered and renormalised. Defaults to `True`.
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
    """

    def __init__(
        self,
        temperature=1.0,
        scale_by_t2=False,
        from_logits=True,
        name=None,
        reduction="mean_with_sample_weight",
        dtype=None,
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

    # `closed_form(rows)` returns value and slope, see `energies.closed_forms`.
    closed_form = None

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        # An inherited closed form would belong to another formula than this one.
        redefined = {"pointwise", "represent", "call"} & set(vars(cls))
        if redefined and "closed_form" not in vars(cls):
            cls.closed_form = None

    def value_and_gradient(self, teacher, student):
        if self.closed_form is None or not self.from_logits:
            return super().value_and_gradient(teacher, student)
        rows = ProbabilityRows(teacher, student, self.temperature)
        value, slope = self.closed_form(rows)
        scale = self.temperature**2 if self.scale_by_t2 else 1.0
        slope = [(factor * (scale / self.temperature), x) for factor, x in slope]
        return value if scale == 1.0 else scale * value, slope

    def get_config(self):
        return {
            **super().get_config(),
            "temperature": self.temperature,
            "scale_by_t2": self.scale_by_t2,
            "from_logits": self.from_logits,
        }
