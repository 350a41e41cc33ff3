"""A temperature that is learned against the student, and how strongly: the curriculum.

The gradient that would lower the energy is reversed before it reaches the temperature,
and the reversal grows along a cosine from nothing to its full strength, see
`keras_betakd.energies.ctkd`.
"""

import math

import keras
from keras import ops

from keras_betakd.energies.schedule import EnergySchedule
from keras_betakd.objective import sped_up


def reversed_gradient(x, strength):
    """`x`, whose gradient is multiplied by -`strength`."""
    fixed = ops.stop_gradient(x)
    return fixed - strength * (x - fixed)


class TemperatureCurriculum(EnergySchedule):
    """lambda, the strength of the reversal, along the curriculum.

    Args:
        total_steps: K, the optimizer steps until the reversal has its full strength.
    """

    shown_as = "reversal"

    def __init__(self, total_steps, **kwargs):
        super().__init__(**kwargs)
        self.total_steps = total_steps
        self.strength = self.scalar("strength")

    def reversed(self, x):
        """`x`, whose gradient is reversed as far as the curriculum has come."""
        # A copy: on PyTorch the variable moves on before the gradient is taken.
        strength = ops.copy(ops.convert_to_tensor(self.strength))
        return reversed_gradient(x, ops.cast(strength, x.dtype))

    def state(self, energy, usable, moves, step):
        # For the step that comes next; the first one has none.
        progress = ops.minimum((step + 1.0) / self.total_steps, 1.0)
        strength = 0.5 * (1.0 - ops.cos(math.pi * progress))
        before = ops.convert_to_tensor(self.strength)
        return [(self.strength, ops.where(moves, strength, before))]

    def shown(self):
        return ops.convert_to_tensor(self.strength)


class GlobalTemperature(TemperatureCurriculum):
    """The curriculum, with theta for a temperature low + (high - low) * sigmoid(theta).

    Args:
        total_steps: see `TemperatureCurriculum`.
        low, high: bounds of the temperature.
        initial: the temperature at first.
        multiplier: how many times as fast as `raw` theta moves.
    """

    shown_as = "temperature"

    def __init__(self, total_steps, low, high, initial, multiplier, **kwargs):
        super().__init__(total_steps, **kwargs)
        self.low, self.high = low, high
        self.multiplier = multiplier
        self.start = math.log((initial - low) / (high - initial))
        self.raw = self.scalar("raw_theta", trainable=True)

    def temperature(self, raw=None):
        """T of the variable, or of another `raw`; the gradient is reversed."""
        if raw is None:
            raw = ops.convert_to_tensor(self.raw)
        theta = self.reversed(self.start + sped_up(raw, self.multiplier))
        return self.low + (self.high - self.low) * ops.sigmoid(theta)

    def shown(self):
        return self.temperature()


class PredictedTemperature(TemperatureCurriculum):
    """The curriculum, with a network that predicts a temperature for each position.

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
        seen = ops.concatenate([student, teacher], axis=-1)
        # The student must not learn to look easy, and no class is infinitely unlikely
        # to a network: an excluded one (-inf) is shown to it as 0.
        seen = ops.stop_gradient(seen)
        seen = ops.where(ops.isfinite(seen), seen, ops.zeros_like(seen))
        raw = self.network(ops.reshape(seen, (-1, seen.shape[-1])))
        raw = self.reversed(ops.reshape(raw, shape[:-1]))
        return self.low + (self.high - self.low) * ops.sigmoid(raw)


def log_probabilities_at(logits, temperature):
    """log softmax(logits / T), with T a tensor that gets a gradient.

    Args:
        logits: (..., V).
        temperature: broadcastable to (...).
    """
    allowed = logits != -math.inf
    # 0 * inf, the slope of an excluded class towards T, would be NaN.
    finite = ops.where(allowed, logits, ops.zeros_like(logits))
    tempered = finite / ops.expand_dims(temperature, -1)
    excluded = ops.cast(-math.inf, logits.dtype)
    return ops.log_softmax(ops.where(allowed, tempered, excluded), axis=-1)
