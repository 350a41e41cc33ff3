"""CTKD: a distillation temperature that is learned adversarially, on a curriculum.

With a fixed temperature the difficulty of the task stays the same. Here the temperature
T is trained together with the student but to raise the energy: the gradient of what T
is computed from, theta, is reversed, so that the task becomes harder while the student
learns it. A curriculum scales the reversed gradient from 0 to its full size,

    d loss / d theta  becomes  -lambda_k * d loss / d theta,
    lambda_k = (1 - cos(pi * min(k, K) / K)) / 2

at optimizer step k, with K = `total_steps`.

Reference: Curriculum Temperature for Knowledge Distillation, Li et al., AAAI 2023
(arXiv:2211.16231), sections 3.2 and 3.3.
"""

import math
from collections.abc import Sequence

import keras
from keras import ops

from keras_betakd.backends import value_and_gradient
from keras_betakd.energies.base import Energy, checked_number
from keras_betakd.energies.ctkd_temperature import (
    GlobalTemperature,
    PredictedTemperature,
    log_probabilities_at,
)
from keras_betakd.energies.divergences import forward_kl
from keras_betakd.energies.forward_divergence import entropy, expect_form
from keras_betakd.energies.schedule import expect_steps

_REGISTER = keras.saving.register_keras_serializable(package="keras_betakd")


class _TemperatureEnergy(Energy):
    """T^power * KL(p_T || q_T) at a temperature T that is a tensor."""

    def __init__(
        self,
        total_steps,
        min_temperature,
        max_temperature,
        power,
        form,
        **kwargs,
    ):
        super().__init__(**kwargs)
        expect_steps(total_steps)
        self.total_steps = total_steps
        self.min_temperature = checked_number("min_temperature", min_temperature)
        self.max_temperature = checked_number(
            "max_temperature", max_temperature, low=self.min_temperature
        )
        self.power = checked_number("power", power, low=-math.inf)
        self.form = expect_form(form)

    def at(self, teacher, student, temperature):
        """The energy at a temperature: (..., V), (..., V) and (...) to (...)."""
        log_p = log_probabilities_at(teacher, temperature)
        log_q = log_probabilities_at(student, temperature)
        value = forward_kl(log_p, log_q)
        if self.form == "cross_entropy":
            value = value + entropy(log_p)
        return value * temperature**self.power

    def get_config(self):
        return {
            **super().get_config(),
            "total_steps": self.total_steps,
            "min_temperature": self.min_temperature,
            "max_temperature": self.max_temperature,
            "power": self.power,
            "form": self.form,
        }


@_REGISTER
class CTKDEnergy(_TemperatureEnergy):
    """Curriculum temperature distillation (CTKD) with one learned temperature.

    Use it in place of a search for a fixed temperature:

        l = T^power * KL(softmax(y_true / T) || softmax(y_pred / T)),
        T = min_temperature + (max_temperature - min_temperature) * sigmoid(theta)

    theta is a trainable Keras variable whose gradient is reversed (see
    `keras_betakd.energies.ctkd`), trained by the optimizer that trains the student. A
    `BetaKDDistiller` trains it, advances the curriculum once an optimizer step (never
    in `evaluate`), excludes it from weight decay, saves it with its weights and reports
    the temperature as `<name>_temperature`. In a training loop of your own, add
    `energy.schedule` to the layers of the model and call `energy.schedule.update(l)`
    after each step; `keras.Model.compile(loss=...)` cannot do that, and raises an
    error.

    With Adam at a learning rate r, theta moves by about `multiplier` * r a step,
    whatever the size of its gradient: the curriculum then decides the direction of the
    step and not its size, which it decides with SGD.

    Shapes: `y_true` and `y_pred` are `(..., V)`; `call` returns `(...)`, in nats per
    token times T^power. Masking: see `Energy`.

    Args:
        total_steps: positive integer, optimizer steps until the reversal has its full
            strength; in the paper, those of 10 epochs of 240.
        initial_temperature: T at the start, strictly between the bounds. Defaults to 2.
        min_temperature: the lower bound of T, which it never reaches. Defaults to 1, as
            in the paper.
        max_temperature: the upper bound, likewise. Defaults to 21.
        power: the exponent of T. Defaults to 2, which keeps the size of the gradient
            while T changes.
        form: `"divergence"` (default), or `"cross_entropy"` to add the teacher's
            entropy; `keras_betakd.energies.forward_divergence` says what that does to
            beta.
        multiplier: learning-rate multiplier of theta, as that of a `TaskBeta`. Defaults
            to 500, for fine-tuning at a learning rate of 2e-5; choose 1 to 10 for
            training from scratch at 1e-3 and more.
        name, reduction, dtype: See `Energy`.

    Raises:
        ValueError: for an invalid argument, or for inputs of different shape.

    Example:

    >>> from keras import ops
    >>> p = ops.log(ops.array([[0.7, 0.2, 0.1]]))
    >>> q = ops.log(ops.array([[0.2, 0.5, 0.3]]))
    >>> energy = CTKDEnergy(total_steps=100, initial_temperature=4.0)
    >>> round(float(energy(p, q)), 4)
    0.5991

    Reference: CTKD, Li et al., AAAI 2023 (arXiv:2211.16231), equations 2 to 5.
    """

    def __init__(
        self,
        total_steps: int,
        initial_temperature: float = 2.0,
        min_temperature: float = 1.0,
        max_temperature: float = 21.0,
        power: float = 2.0,
        form: str = "divergence",
        multiplier: float = 500.0,
        **kwargs,
    ):
        super().__init__(
            total_steps, min_temperature, max_temperature, power, form, **kwargs
        )
        self.multiplier = checked_number("multiplier", multiplier)
        self.initial_temperature = checked_number(
            "initial_temperature",
            initial_temperature,
            low=self.min_temperature,
            high=self.max_temperature,
        )
        self.schedule = GlobalTemperature(
            total_steps,
            self.min_temperature,
            self.max_temperature,
            self.initial_temperature,
            self.multiplier,
            dtype=self.dtype,
        )
        self.parameter = self.schedule.raw

    def pointwise(self, teacher, student):
        temperature = ops.cast(self.schedule.temperature(), student.dtype)
        return self.at(teacher, student, temperature)

    def value_and_gradients(self, teacher, student):
        raw = ops.convert_to_tensor(self.parameter)
        column = ops.broadcast_to(raw, (ops.shape(student.logits)[0], 1))

        def value(x):
            temperature = self.schedule.temperature(x[:, -1])
            return self.at(teacher.logits, x[:, :-1], temperature)

        # Concatenated, so that one backward pass gives both gradients.
        logits = ops.concatenate([student.logits, column], axis=-1)
        value, gradient = value_and_gradient(value, logits)
        return value, [(1.0, gradient[:, :-1])], gradient[:, -1]

    def get_config(self):
        return {
            **super().get_config(),
            "initial_temperature": self.initial_temperature,
            "multiplier": self.multiplier,
        }


@_REGISTER
class CTKDMLPEnergy(_TemperatureEnergy):
    """Curriculum temperature distillation with a temperature for each position.

    As `CTKDEnergy`, with a temperature that a small network predicts,

        T = min_temperature + (max_temperature - min_temperature)
            * sigmoid(network([y_pred, y_true]))

    The gradient of the network is reversed. No gradient flows back through its input,
    so the student does not learn to make the temperature lower its loss. The energy
    needs the full logits, so a distiller cannot use the fused head with it, and the
    network's first layer has 2 * classes * units weights: many for vocabularies of
    100,000 and more.

    A distiller reports the strength of the reversal as `<name>_reversal`.

    Args:
        total_steps: see `CTKDEnergy`.
        classes: V, the width of the logits.
        units: widths of the network's hidden layers. Defaults to `(64,)`.
        min_temperature, max_temperature, power, form: see `CTKDEnergy`.
        name, reduction, dtype: See `Energy`.

    Raises:
        ValueError: for an invalid argument, for inputs of different shape, or of
            another number of classes.

    Example:

    >>> from keras import ops
    >>> energy = CTKDMLPEnergy(total_steps=100, classes=3)
    >>> p, q = ops.array([[2.0, 0.0, 0.0]]), ops.array([[0.0, 0.0, 1.0]])
    >>> energy(p, q).shape == () and float(energy(p, p)) == 0.0
    True

    Reference: CTKD, Li et al., AAAI 2023 (arXiv:2211.16231), section 3.2, instance-wise
    temperature.
    """

    fuses = False

    def __init__(
        self,
        total_steps: int,
        classes: int,
        units: Sequence[int] = (64,),
        min_temperature: float = 1.0,
        max_temperature: float = 21.0,
        power: float = 2.0,
        form: str = "divergence",
        **kwargs,
    ):
        super().__init__(
            total_steps, min_temperature, max_temperature, power, form, **kwargs
        )
        sizes = (classes, *units)
        if not all(isinstance(size, int) and size > 0 for size in sizes):
            raise ValueError(
                "`classes` and `units` must be positive integers. Received: "
                f"classes={classes}, units={units}"
            )
        self.classes = classes
        self.units = tuple(units)
        self.schedule = PredictedTemperature(
            total_steps,
            self.min_temperature,
            self.max_temperature,
            classes,
            self.units,
            dtype=self.dtype,
        )

    def check_shapes(self, teacher, student):
        super().check_shapes(teacher, student)
        if student.shape[-1] not in (None, self.classes):
            raise ValueError(
                f"The logits must have `classes` columns. Received: {student.shape}, "
                f"classes={self.classes}"
            )

    def pointwise(self, teacher, student):
        temperature = self.schedule.temperature(teacher, student)
        return self.at(teacher, student, ops.cast(temperature, student.dtype))

    def get_config(self):
        return {
            **super().get_config(),
            "classes": self.classes,
            "units": list(self.units),
        }
