"""TAID: distillation from a target that moves from the student to the teacher."""

import math

import keras
from keras import ops

from keras_betakd.energies.divergences import forward_kl
from keras_betakd.energies.forward_divergence import ForwardDivergenceEnergy
from keras_betakd.energies.schedule import EnergySchedule, expect_steps


def interpolated(log_p, log_q, t):
    """log softmax((1 - t) log q + t log p), without gradient.

    Where the models agree it is exactly log q, so that the energy is exactly 0.

    Args:
        log_p, log_q: (..., V), log-probabilities of teacher and student.
        t: scalar between 0 and 1.
    """
    log_p, log_q = ops.stop_gradient(log_p), ops.stop_gradient(log_q)
    zero = ops.zeros_like(log_p)
    # A model with weight 0 excludes no class; 0 * -inf would be NaN.
    teacher = ops.where(t > 0, t * log_p, zero)
    student = ops.where(t < 1, (1.0 - t) * log_q, zero)
    mean = teacher + student
    # If no class is allowed by both, the teacher's distribution: the energy is then
    # infinite, not NaN.
    nothing = ops.max(mean, axis=-1, keepdims=True) == -math.inf
    mean = ops.log_softmax(ops.where(nothing, log_p, mean), axis=-1)
    agree = ops.all(log_p == log_q, axis=-1, keepdims=True)
    return ops.where(agree, log_q, mean)


@keras.saving.register_keras_serializable(package="keras_betakd")
class TAIDSchedule(EnergySchedule):
    """The interpolation parameter t of `TAIDEnergy` and its update.

    At optimizer step k (from 0) with mean energy l_k,

        m = momentum * m + (1 - momentum) * (l_{k-1} - l_k) / l_{k-1}
        t = min(end, max(start + (end - start) * k / total_steps,
                         t + rate * sigmoid(m) * (1 - t)))

    so that t is at least on the straight line from `start` to `end` and runs ahead of
    it while the energy falls. The first step only stores its energy. At a step without
    a supervised token, or whose energy is not finite, t follows the line alone.
    `rate=0` is the line.

    Args:
        start, end, total_steps, rate, momentum: see `TAIDEnergy`.

    Reference: TAID, Shing et al. 2025 (arXiv:2501.16937), section 3.2 and algorithm 1.
    """

    shown_as = "t"

    def __init__(self, start, end, total_steps, rate, momentum, **kwargs):
        super().__init__(**{**kwargs, "trainable": False})
        self.start = start
        self.end = end
        self.total_steps = total_steps
        self.rate = rate
        self.momentum = momentum
        self.t = self.scalar("t", start)
        self.trend = self.scalar("trend")
        self.last_energy = self.scalar("last_energy")
        self.has_last = self.scalar("has_last")

    def state(self, energy, usable, moves, step):
        last, t = ops.convert_to_tensor(self.last_energy), ops.convert_to_tensor(self.t)
        has_last = ops.convert_to_tensor(self.has_last)
        compares = ops.logical_and(usable, has_last > 0)
        fall = (last - energy) / ops.where(last > 0, last, 1.0)
        trend = ops.convert_to_tensor(self.trend)
        moved = self.momentum * trend + (1.0 - self.momentum) * fall
        trend = ops.where(compares, moved, trend)
        ahead = ops.where(compares, self.rate * ops.sigmoid(trend) * (1.0 - t), 0.0)
        line = self.start + (self.end - self.start) * step / self.total_steps
        new = ops.minimum(self.end, ops.maximum(line, t + ahead))
        return [
            (self.t, ops.where(moves, new, t)),
            (self.trend, trend),
            (self.last_energy, ops.where(usable, energy, last)),
            (self.has_last, ops.where(usable, 1.0, has_last)),
        ]

    def shown(self):
        return ops.convert_to_tensor(self.t)


@keras.saving.register_keras_serializable(package="keras_betakd")
class TAIDEnergy(ForwardDivergenceEnergy):
    """Temporally adaptive interpolated distillation (TAID).

    Use it where the teacher is so much larger that the student cannot fit its outputs
    from the start: the target begins near the student's own output and moves to the
    teacher's.

        l = KL(p_t || q),   p_t = softmax((1 - t) z_s + t z_t)

    with z_t = y_true / temperature, z_s = y_pred / temperature, q = softmax(z_s), and
    no gradient through p_t. Near agreement l = t^2 KL(p || q), so a learned weight
    starts 1 / t^2 times higher and falls as t rises.

    t goes from `start` to `end` in `total_steps` optimizer steps, see `TAIDSchedule`.
    It is a Keras variable: a `BetaKDDistiller` updates it once an optimizer step (never
    in `evaluate`), saves it with its weights and reports it as `<name>_t`. In a
    training loop of your own, call `energy.schedule.update(l)` after each step;
    `keras.Model.compile(loss=...)` cannot do that, and raises an error.

    Shapes: `y_true` and `y_pred` are `(..., V)`; `call` returns `(...)`, in nats per
    token. A class that either model excludes (logit -inf) is no part of p_t, except
    that at t = 1 the target is the teacher's and the energy that of `ForwardKLEnergy`;
    +inf if the models allow no class in common.

    Masking: see `Energy`. Temperature, its T^2 factor and their effect on
    beta* = d / (2 l): see `ProbabilityEnergy`.

    Args:
        total_steps: positive integer, optimizer steps of the whole training.
        start: initial t, at least 0. Defaults to 0.4.
        end: final t, above `start`, at most 1. Defaults to 1.
        rate: how fast t runs ahead of the straight line while the energy falls, alpha
            in the paper. 0 for the line alone. Defaults to 5e-4.
        momentum: momentum of the running mean m of the energy's relative fall, beta in
            the paper, at least 0 and below 1. Defaults to 0.99.
        form: `"divergence"` (default), or `"cross_entropy"` to add the entropy of p_t;
            see `keras_betakd.energies.forward_divergence` for what that does to beta.
        temperature, scale_by_t2, from_logits: See `ProbabilityEnergy`.
        name, reduction, dtype: See `Energy`.

    Raises:
        ValueError: for an invalid argument, or for inputs of different shape.

    Example:

    >>> from keras import ops
    >>> p = ops.array([[0.7, 0.2, 0.1]])
    >>> q = ops.array([[0.2, 0.5, 0.3]])
    >>> energy = TAIDEnergy(total_steps=100, start=0.5, from_logits=False)
    >>> round(float(energy(p, q)), 4)
    0.1401

    Reference: TAID, Shing et al. 2025 (arXiv:2501.16937), equations 3 and 4.
    """

    def __init__(
        self,
        total_steps: int,
        start: float = 0.4,
        end: float = 1.0,
        rate: float = 5e-4,
        momentum: float = 0.99,
        **kwargs,
    ):
        super().__init__(**kwargs)
        expect_steps(total_steps)
        if not 0 <= start < end <= 1:
            raise ValueError(
                "`start` and `end` must be such that 0 <= start < end <= 1. Received: "
                f"start={start}, end={end}"
            )
        if not 0 <= momentum < 1 or not 0 <= rate < math.inf:
            raise ValueError(
                "`momentum` must lie in [0, 1) and `rate` must not be negative. "
                f"Received: momentum={momentum}, rate={rate}"
            )
        self.schedule = TAIDSchedule(
            start, end, total_steps, rate, momentum, dtype=self.dtype
        )

    def pointwise(self, log_p, log_q):
        t = ops.cast(ops.convert_to_tensor(self.schedule.t), log_q.dtype)
        target = interpolated(log_p, log_q, t)
        return forward_kl(target, log_q) + self.floor(lambda: target)

    def get_config(self):
        schedule = self.schedule
        return {
            **super().get_config(),
            "total_steps": schedule.total_steps,
            "start": schedule.start,
            "end": schedule.end,
            "rate": schedule.rate,
            "momentum": schedule.momentum,
        }
