"""What all beta layers share: d, the penalty, the bounds and the multiplier."""

import math

import keras
from keras import ops

from keras_betakd.objective import log_beta_penalty, sped_up


def positive(name, value):
    if not value > 0 or not math.isfinite(value):
        raise ValueError(
            f"`{name}` must be a positive finite number. Received: {name}={value}"
        )
    return float(value)


class Beta(keras.layers.Layer):
    """Base of the beta layers; a subclass says what log beta is.

    Args:
        dim: d, positive; the relative weight of the teacher term.

    Call arguments:
        weights: (B, K) row weights that add up to one
            (`keras_betakd.objective.row_weights`).
        features: what `features_of` made of the teacher, or `None`.

    Returns:
        log beta, float32, broadcastable to (B, K).
    """

    uses_features = False
    reads_logits = False  # whether the features rest on the teacher's logits

    def __init__(self, dim=1.0, name=None, **kwargs):
        # The dtype is not a choice: 1 + 1e-4 is 1 in bfloat16.
        kwargs.pop("dtype", None)
        super().__init__(name=name, dtype="float32", **kwargs)
        self.dim = positive("dim", dim)

    def features_of(self, teacher):
        """Features for `call`, from a `TeacherOutputs`."""
        return None

    def features_width(self, teacher_view):
        """How wide they are for a teacher, `None` where only a batch can tell."""
        return None

    def call(self, weights, features=None):
        log_beta = self.log_beta(features)
        self.add_loss(log_beta_penalty(log_beta, weights, self.dim))
        return log_beta

    def log_beta(self, features):
        raise NotImplementedError

    def update(self, energy, weights):
        """Called once a training step with the energy (B, K) just measured."""

    def get_config(self):
        config = super().get_config()
        del config["dtype"]
        return {**config, "dim": self.dim}


class RangedBeta(Beta):
    """Base of the betas that move: a start and two bounds."""

    def __init__(
        self,
        dim=1.0,
        initial_value=1.0,
        min_value=0.01,
        max_value=100.0,
        name=None,
        **kwargs,
    ):
        super().__init__(dim=dim, name=name, **kwargs)
        self.initial_value = positive("initial_value", initial_value)
        self.min_value = positive("min_value", min_value)
        self.max_value = positive("max_value", max_value)
        if not min_value < initial_value < max_value:
            raise ValueError(
                "`initial_value` must lie between `min_value` and `max_value`. "
                f"Received: initial_value={initial_value}, min_value={min_value}, "
                f"max_value={max_value}"
            )

    def get_config(self):
        return {
            **super().get_config(),
            "initial_value": self.initial_value,
            "min_value": self.min_value,
            "max_value": self.max_value,
        }


def _bent(x):
    """x / sqrt(1 + x^2), between -1 and 1.

    Far out as sign(x) / sqrt(1 + 1 / x^2): x^2 may overflow there, and the slope, as
    the difference of two numbers of size 1 / x, would be lost in rounding.
    """
    near = ops.abs(x) <= 1.0
    close = ops.where(near, x, 0.0)
    far = ops.where(near, 1.0, x)
    return ops.where(
        near,
        close / ops.sqrt(1.0 + ops.square(close)),
        ops.sign(far) / ops.sqrt(1.0 + ops.square(1.0 / far)),
    )


class LearnedBeta(RangedBeta):
    """Base of the betas that are learned: a range for log beta, and a multiplier."""

    default_multiplier = 1.0

    def __init__(self, *args, multiplier=None, **kwargs):
        super().__init__(*args, **kwargs)
        if multiplier is None:
            multiplier = self.default_multiplier
        self.multiplier = positive("multiplier", multiplier)

    def unbounded(self, raw):
        """log beta of a `raw` that is kept within bounds by other means."""
        return math.log(self.initial_value) + sped_up(raw, self.multiplier)

    def _room(self):
        """How far log beta may go below and above its start."""
        start = math.log(self.initial_value)
        return start - math.log(self.min_value), math.log(self.max_value) - start

    def bounded(self, raw):
        """log beta of an unbounded `raw`: smooth, slope 1 at the start.

        log beta = log(initial_value) + x / sqrt(1 + (x / h)^2), x = multiplier * raw,
        h the distance from the start to the bound on that side. It falls off as a
        power and not exponentially, so the gradient lives far outside the bounds.
        """
        x = sped_up(raw, self.multiplier)
        below, above = self._room()
        room = ops.where(x > 0, above, below)
        return math.log(self.initial_value) + room * _bent(x / room)

    def get_config(self):
        return {**super().get_config(), "multiplier": self.multiplier}
