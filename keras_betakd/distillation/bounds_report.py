"""Reports betas that stand at one of their bounds, and energies that are negative."""

import math
import warnings

import keras

# A beta within this share of the range of log beta counts as being at its bound, which
# a predicted one approaches and does not reach.
_NEAR = 0.02
# What rounding may leave of an energy that is 0.
_ROUNDING = 1e-5


class BoundsReport(keras.callbacks.Callback):
    """Warns once of each beta whose mean over an epoch is at one of its bounds.

    And once of each energy whose mean is negative: a beta that is learned has no best
    value then, and goes to its upper bound.

    Args:
        betas: dict of beta layers by the names of their terms.
    """

    def __init__(self, betas):
        super().__init__()
        self.betas = betas
        self._told = set()

    def on_epoch_end(self, epoch, logs=None):
        logs = logs or {}
        for name, beta in self.betas.items():
            mean = logs.get(f"{name}_beta")
            side = None if mean is None else side_of_bound(mean, *beta.bounds)
            energy = logs.get("task_loss" if name == "task" else name, 0.0)
            if energy < -_ROUNDING and beta.bounds[0] < beta.bounds[1]:
                self._tell((name, "negative"), _negative(name, energy))
            elif side is not None:
                self._tell(name, _MESSAGES[side](name, beta))

    def _tell(self, what, message):
        if what not in self._told:
            self._told.add(what)
            warnings.warn(message, stacklevel=3)


def side_of_bound(value, low, high):
    """`"lower"` or `"upper"` where beta is at that bound; `None` between them.

    Args:
        value: beta.
        low, high: its bounds; equal where it is fixed.
    """
    if not low < high or not value > 0:
        return None
    near = _NEAR * (math.log(high) - math.log(low))
    if math.log(value) < math.log(low) + near:
        return "lower"
    return "upper" if math.log(value) > math.log(high) - near else None


def _upper(name, beta):
    high = beta.bounds[1]
    return (
        f"The beta of '{name}' stood at its upper bound, {high:g}, in this epoch: its "
        f"energy is below d / (2 * {high:g}) = {0.5 * beta.dim / high:.2g}. The "
        "student does what the teacher does there, and beta grows no more as the "
        "energy falls. That is no fault; raise `max_value` to hold it still closer."
    )


def _lower(name, beta):
    low = beta.bounds[0]
    return (
        f"The beta of '{name}' stood at its lower bound, {low:g}, in this epoch: its "
        f"energy is above d / (2 * {low:g}) = {0.5 * beta.dim / low:.2g}, and the "
        "teacher has next to no weight. A scale far above 1 (logits or features that "
        "are not standardised) needs a lower `min_value`; an energy that does not fall "
        "needs a look at the pair and its data."
    )


def _negative(name, energy):
    return (
        f"The mean energy of '{name}' was negative in this epoch, {energy:.2g}. Its "
        "beta has no best value then: beta * l - (d / 2) log beta falls without limit "
        "as beta grows, which goes to its upper bound, and the term outweighs all "
        "others. An energy is 0 where the student equals the teacher, and above 0 "
        "elsewhere: add what it lacks, or give it a `FixedBeta`."
    )


_MESSAGES = {"upper": _upper, "lower": _lower}
