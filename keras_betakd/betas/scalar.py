"""One beta for an energy: fixed, learned, or in closed form."""

import math

import keras
from keras import ops

from keras_betakd.betas.base import Beta, LearnedBeta, RangedBeta, positive
from keras_betakd.objective import any_row, weighted_mean


@keras.saving.register_keras_serializable(package="keras_betakd")
class FixedBeta(Beta):
    """A beta that is not learned.

    The total still holds -(d / 2) * log(value), so that its values compare with those
    of a learned beta.

    Args:
        value: beta, positive. Defaults to 1, which is plain distillation.
        dim: d, see the module.

    Example:

    >>> from keras_betakd import FixedBeta
    >>> round(float(FixedBeta(2.0).log_beta(None)), 4)
    0.6931
    """

    def __init__(self, value=1.0, dim=1.0, name=None, **kwargs):
        super().__init__(dim=dim, name=name, **kwargs)
        self.value = positive("value", value)
        self.built = True

    def log_beta(self, features):
        return ops.convert_to_tensor(math.log(self.value), dtype="float32")

    def get_config(self):
        return {**super().get_config(), "value": self.value}


@keras.saving.register_keras_serializable(package="keras_betakd")
class TaskBeta(LearnedBeta):
    """One learned beta for an energy: task-level uncertainty.

    Minimising beta * E[l] - (d / 2) * log beta gives beta = d / (2 E[l]).

    Args:
        dim: d. Only (d / 2) * grad log l reaches the student at the best beta, so d is
            the weight of the teacher relative to the cross-entropy. Defaults to 1.
        initial_value: beta at the start. Defaults to 1.
        min_value, max_value: bounds of beta. As l goes to 0 the best beta goes to
            infinity; `max_value` is what stops it. The variable itself is put back to
            the bound after each step that leaves it, so that beta comes back at once
            when the energy says so. Defaults to 0.01 and 100.
        multiplier: log beta moves `multiplier` times as fast as a plain variable.
            Defaults to 500, so that with Adam at a fine-tuning rate of 2e-5 log beta
            moves by 0.01 a step, by one in a hundred steps. When training from
            scratch at 1e-3 choose about 10 to 20.

    Example:

    >>> from keras import ops
    >>> from keras_betakd import TaskBeta
    >>> beta = TaskBeta(initial_value=2.0)
    >>> log_beta = beta(weights=ops.array([[0.5, 0.0], [0.5, 0.0]]))
    >>> round(float(log_beta), 4), round(float(beta.losses[0]), 4)
    (0.6931, -0.3466)

    Reference: Beta-KD, arXiv 2603.21426 (CVPR 2026), task level; Kendall, Gal and
    Cipolla, Multi-Task Learning Using Uncertainty to Weigh Losses, CVPR 2018.
    """

    default_multiplier = 500.0

    def build(self, weights_shape):
        self.raw = self.add_weight(
            name="raw_log_beta",
            shape=(),
            initializer="zeros",
            trainable=True,
            # Not a smooth bound: there a large step, as SGD's first ones are, ends
            # where the slope is next to nothing, and beta stays for good.
            constraint=self._kept,
        )

    def _kept(self, raw):
        below, above = (room / self.multiplier for room in self._room())
        return ops.clip(raw, -below, above)

    def log_beta(self, features):
        raw = ops.convert_to_tensor(self.raw)
        # A value that was loaded or assigned may be outside; the gradient goes on.
        inside = ops.stop_gradient(self._kept(raw)) + (raw - ops.stop_gradient(raw))
        return self.unbounded(inside)


@keras.saving.register_keras_serializable(package="keras_betakd")
class AnalyticBeta(RangedBeta):
    """The closed form without parameters: beta = d / (2 * running mean of l).

    The mean is an exponential one of the training batches, without bias at the start,
    and is updated once a training step, never in `evaluate`. Batches without a
    supervised token, or whose energy is not finite, leave it alone.

    Args:
        dim: d, see `TaskBeta`.
        initial_value: beta until a first energy is known. Defaults to 1.
        min_value, max_value: bounds of beta, reached. Defaults to 0.01 and 100.
        momentum: weight of the past in the running mean. Defaults to 0.99.
    """

    def __init__(
        self,
        dim=1.0,
        initial_value=1.0,
        min_value=0.01,
        max_value=100.0,
        momentum=0.99,
        name=None,
        **kwargs,
    ):
        super().__init__(
            dim=dim,
            initial_value=initial_value,
            min_value=min_value,
            max_value=max_value,
            name=name,
            **kwargs,
        )
        if not 0 <= momentum < 1:
            raise ValueError(
                f"`momentum` must lie in [0, 1). Received: momentum={momentum}"
            )
        self.momentum = momentum

    def build(self, weights_shape):
        options = {"shape": (), "initializer": "zeros", "trainable": False}
        options["aggregation"] = "only_first_replica"  # all have the same
        # sum of m^(t-i) * l_i, and of m^(t-i) alone: their ratio is the mean.
        self.energy_sum = self.add_weight(name="energy_sum", **options)
        self.weight_sum = self.add_weight(name="weight_sum", **options)

    def log_beta(self, features):
        known = ops.convert_to_tensor(self.weight_sum)
        mean = self.energy_sum / ops.where(known > 0, known, 1.0)
        # Bounded on l and not on beta, so that an energy of 0 divides nothing by 0.
        mean = ops.clip(
            mean, 0.5 * self.dim / self.max_value, 0.5 * self.dim / self.min_value
        )
        beta = ops.where(known > 0, 0.5 * self.dim / mean, self.initial_value)
        return ops.log(beta)

    def update(self, energy, weights):
        mean = ops.stop_gradient(weighted_mean(energy, weights))
        # One infinite energy would stay in the mean for good.
        usable = ops.logical_and(any_row(weights), ops.isfinite(mean))
        mean = ops.where(usable, mean, 0.0)
        counted = ops.cast(usable, "float32")
        past = 1.0 - counted * (1.0 - self.momentum)
        self.energy_sum.assign(past * self.energy_sum + counted * mean)
        self.weight_sum.assign(past * self.weight_sum + counted)

    def get_config(self):
        return {
            **super().get_config(),
            "momentum": self.momentum,
        }
