"""The learned temperatures of CTKD, and the curriculum of their reversed gradient.

The gradient that would lower the energy is reversed before it reaches the temperature,
and scaled by a cosine schedule from 0 to 1 (`keras_betakd.energies.ctkd`).
"""

import math

import keras
from keras import ops

from keras_betakd.energies.schedule import EnergySchedule
from keras_betakd.objective import sped_up


def reversed_gradient(x, strength):
    """The value of `x`, with its gradient multiplied by -`strength`."""
    fixed = ops.stop_gradient(x)
    return fixed - strength * (x - fixed)


class TemperatureCurriculum(EnergySchedule):
    """The strength of the gradient reversal, lambda, as a function of the step.

    Args:
        total_steps: K, the optimizer steps until the reversal has its full strength.
    """

    shown_as = "reversal"

    def __init__(self, total_steps, **kwargs):
        super().__init__(**kwargs)
        self.total_steps = total_steps
        self.strength = self.scalar("strength")

    def reversed(self, x):
        """The value of `x`, with its gradient multiplied by -lambda."""
        # A copy: on PyTorch the variable is updated before the backward pass.
        strength = ops.copy(ops.convert_to_tensor(self.strength))
        return reversed_gradient(x, ops.cast(strength, x.dtype))

    def state(self, energy, usable, moves, step):
        # The strength for the next step; at the first step it is 0.
        progress = ops.minimum((step + 1.0) / self.total_steps, 1.0)
        strength = 0.5 * (1.0 - ops.cos(math.pi * progress))
        before = ops.convert_to_tensor(self.strength)
        return [(self.strength, ops.where(moves, strength, before))]

    def shown(self):
        return ops.convert_to_tensor(self.strength)


class GlobalTemperature(TemperatureCurriculum):
    """One learned temperature, low + (high - low) * sigmoid(theta).

    theta is the sum of its initial value and `multiplier` times the variable `raw`,
    which receives the gradient of theta (see `keras_betakd.objective.sped_up`).

    Args:
        total_steps: see `TemperatureCurriculum`.
        low, high: bounds of the temperature.
        initial: the temperature at the start.
        multiplier: learning-rate multiplier of theta.
    """

    shown_as = "temperature"

    def __init__(self, total_steps, low, high, initial, multiplier, **kwargs):
        super().__init__(total_steps, **kwargs)
        self.low, self.high = low, high
        self.multiplier = multiplier
        self.start = math.log((initial - low) / (high - initial))
        self.raw = self.scalar("raw_theta", trainable=True)

    def temperature(self, raw=None):
        """T of the variable, or of a given `raw`, with the gradient reversed."""
        if raw is None:
            raw = ops.convert_to_tensor(self.raw)
        theta = self.reversed(self.start + sped_up(raw, self.multiplier))
        return self.low + (self.high - self.low) * ops.sigmoid(theta)

    def shown(self):
        return self.temperature()


class PredictedTemperature(TemperatureCurriculum):
    """A temperature that a network predicts for each position from both logits.

    Args:
        total_steps: see `TemperatureCurriculum`.
        low, high: bounds of the temperature.
        classes: V.
        units: widths of the hidden layers.
    """

    def __init__(self, total_steps, low, high, classes, units, **kwargs):
        super().__init__(total_steps, **kwargs)
        self.low, self.high = low, high
        self.network = keras.Sequential(
            [
                keras.Input((2 * classes,)),
                *(
                    keras.layers.Dense(width, "relu", dtype=self.dtype_policy)
                    for width in units
                ),
                keras.layers.Dense(1, dtype=self.dtype_policy),
            ],
            name="temperature_network",
        )

    def temperature(self, teacher, student):
        """T of each position: (..., V) twice to (...)."""
        shape = ops.shape(student)
        # Without gradient, so that the student does not learn to change T. A network
        # cannot take the -inf of an excluded class, which becomes 0.
        inputs = ops.stop_gradient(ops.concatenate([student, teacher], axis=-1))
        inputs = ops.where(ops.isfinite(inputs), inputs, ops.zeros_like(inputs))
        raw = self.network(ops.reshape(inputs, (-1, inputs.shape[-1])))
        raw = self.reversed(ops.reshape(raw, shape[:-1]))
        return self.low + (self.high - self.low) * ops.sigmoid(raw)


def log_probabilities_at(logits, temperature):
    """log softmax(logits / T), differentiable with respect to T.

    Args:
        logits: (..., V).
        temperature: broadcastable to (...).
    """
    allowed = logits != -math.inf
    # The derivative of an excluded class with respect to T would be 0 * inf, NaN.
    finite = ops.where(allowed, logits, ops.zeros_like(logits))
    tempered = finite / ops.expand_dims(temperature, -1)
    excluded = ops.cast(-math.inf, logits.dtype)
    return ops.log_softmax(ops.where(allowed, tempered, excluded), axis=-1)
