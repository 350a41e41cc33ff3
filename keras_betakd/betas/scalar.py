"""Betas that are one number per energy: fixed, learned, or in closed form."""

import math

import keras
from keras import ops

from keras_betakd.betas.base import Beta, LearnedBeta, RangedBeta, positive
from keras_betakd.betas.running_mean import RunningMean


@keras.saving.register_keras_serializable(package="keras_betakd")
class FixedBeta(Beta):
    """A beta that is not learned.

    The loss still contains -(d / 2) * log(value), so that it can be compared with that
    of a learned beta.

    Args:
        value: beta, positive. Defaults to 1, which is plain distillation.
        dim: d, see `keras_betakd.betas`. Defaults to 1.

    Raises:
        ValueError: if `value` or `dim` is not positive and finite.

    Example:

    >>> from keras_betakd import FixedBeta
    >>> round(float(FixedBeta(2.0).log_beta(None)), 4)
    0.6931

    Reference: with `task_beta=None`, the fixed weight of Hinton et al. 2015
    (arXiv:1503.02531).
    """

    def __init__(
        self, value: float = 1.0, dim: float = 1.0, name: str | None = None, **kwargs
    ):
        super().__init__(dim=dim, name=name, **kwargs)
        self.value = positive("value", value)
        self.built = True

    @property
    def bounds(self):
        return self.value, self.value

    def log_beta(self, features):
        return ops.convert_to_tensor(math.log(self.value), dtype="float32")

    def get_config(self):
        return {**super().get_config(), "value": self.value}


@keras.saving.register_keras_serializable(package="keras_betakd")
class TaskBeta(LearnedBeta):
    """One learned beta per energy: task-level uncertainty.

    Minimising beta * E[l] - (d / 2) * log beta gives beta* = d / (2 E[l]).

    Args:
        dim: d. At beta* the student receives (d / 2) * grad log l, so d is the weight
            of the teacher relative to the cross-entropy. Defaults to 1.
        initial_value: initial beta, strictly between the bounds. Defaults to 1.
        min_value: the lower bound of beta. Defaults to 0.01.
        max_value: the upper bound. As l goes to 0, beta* goes to infinity; this stops
            it. Defaults to 100. The variable itself is clipped to the bounds after
            each step, so that beta leaves a bound at once when its gradient changes
            sign.
        speed: how much log beta changes per step, see `keras_betakd.betas`. Defaults
            to 0.1: by a factor e in ten steps, whatever the student's optimizer.
        multiplier: the unit of the variable: log beta = log(initial_value) +
            multiplier * variable, with the gradient of log beta itself. A distiller
            moves log beta at its `speed` for any of them; files load with the one that
            they were written with. Defaults to 500, so that in a model of your own an
            Adam at 2e-5 moves log beta by 0.01 a step.

    Raises:
        ValueError: if a number is not positive and finite, or `initial_value` is not
            between the bounds.

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
            # Clipped and not bounded smoothly: after a large step, like SGD's first
            # ones, the slope of a smooth bound is nearly 0, and beta would stay there.
            constraint=self._clipped,
        )

    def _clipped(self, raw):
        below, above = (room / self.multiplier for room in self._room())
        return ops.clip(raw, -below, above)

    def log_beta(self, features):
        raw = ops.convert_to_tensor(self.raw)
        # A loaded or assigned value may be outside; the gradient passes the clipping.
        inside = ops.stop_gradient(self._clipped(raw)) + (raw - ops.stop_gradient(raw))
        return self.unbounded(inside)


@keras.saving.register_keras_serializable(package="keras_betakd")
class AnalyticBeta(RangedBeta):
    """Beta in closed form, without parameters: d / (2 * running mean of l).

    The mean is a bias-corrected exponential moving average over the training batches,
    updated once per training step and never in `evaluate`. Batches without a supervised
    token, or whose energy is not finite, do not change it.

    Args:
        dim: d, see `TaskBeta`.
        initial_value: beta before the first energy. Defaults to 1.
        min_value: the lower bound of beta, which it can reach. Defaults to 0.01.
        max_value: the upper bound, likewise. Defaults to 100.
        momentum: weight of the past in the running mean, at least 0 and below 1.
            Defaults to 0.99.

    Raises:
        ValueError: as `TaskBeta`, and for an invalid `momentum`.

    Example:

    >>> from keras import ops
    >>> from keras_betakd import AnalyticBeta
    >>> beta, weights = AnalyticBeta(), ops.array([[0.5, 0.5]])
    >>> _ = beta(weights)
    >>> beta.update(ops.array([[0.1, 0.3]]), weights)  # a mean energy of 0.2
    >>> round(float(ops.exp(beta(weights))), 4)  # 1 / (2 * 0.2)
    2.5

    Reference: the optimum of Beta-KD's task level, arXiv 2603.21426 (CVPR 2026).
    """

    def __init__(
        self,
        dim: float = 1.0,
        initial_value: float = 1.0,
        min_value: float = 0.01,
        max_value: float = 100.0,
        momentum: float = 0.99,
        name: str | None = None,
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
        self._mean_energy = RunningMean(self, self.momentum)

    def log_beta(self, features):
        mean = self._mean_energy.value(self.initial_energy)
        # The bounds are applied to l and not to beta, for an energy of 0.
        mean = ops.clip(
            mean, 0.5 * self.dim / self.max_value, 0.5 * self.dim / self.min_value
        )
        return ops.log(0.5 * self.dim / mean)

    def update(self, energy, weights):
        self._mean_energy.update(energy, weights)

    def get_config(self):
        return {
            **super().get_config(),
            "momentum": self.momentum,
        }
