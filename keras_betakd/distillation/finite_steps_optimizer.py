"""`FiniteStepsOptimizer`: an optimizer that skips steps with non-finite gradients."""

from collections.abc import Sequence

import keras
from keras import ops

from keras_betakd.backends import gradient_values, run_if
from keras_betakd.distillation.beta_optimizer import BetaOptimizer


@keras.saving.register_keras_serializable(package="keras_betakd")
class FiniteStepsOptimizer(keras.optimizers.Optimizer):
    """Wraps an optimizer, and skips the steps whose gradients are not finite.

    A gradient with NaN or infinity in it changes no variable: not the model's, not the
    optimizer's moments, not its count of steps. `BetaKDDistiller.compile` wraps the
    optimizer that it is given. A `keras.optimizers.LossScaleOptimizer` skips such steps
    itself; here its betas wait, too.

    Args:
        inner_optimizer: the `keras.optimizers.Optimizer` that makes the steps.
        betas: `keras_betakd.betas.Beta` layers, whose variables are moved at their own
            speed and not by `inner_optimizer`. Not part of the configuration: a
            distiller gives them when it is compiled.
        name: name of the wrapper.

    Attributes:
        skipped: variable, how many steps were skipped.

    Example:

    >>> import keras
    >>> from keras import ops
    >>> from keras_betakd import FiniteStepsOptimizer
    >>> optimizer = FiniteStepsOptimizer(keras.optimizers.SGD(0.5))
    >>> x = keras.Variable([1.0, 2.0])
    >>> optimizer.apply([ops.array([1.0, float("nan")])], [x])
    >>> optimizer.apply([ops.array([1.0, 1.0])], [x])
    >>> [float(value) for value in ops.convert_to_numpy(x)], int(optimizer.skipped)
    ([0.5, 1.5], 1)
    """

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        betas: Sequence = (),
        name: str | None = None,
    ):
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer = inner_optimizer
        self.beta_optimizer: BetaOptimizer | None = None
        self._learned: list[int] = []
        if betas:
            every = innermost(inner_optimizer).gradient_accumulation_steps
            self.beta_optimizer = BetaOptimizer(betas, every)

    def build(self, variables):
        if self.built:
            return
        self.skipped = self.add_variable(
            shape=(),
            dtype="int",
            initializer="zeros",
            aggregation="only_first_replica",
            name="skipped",
        )
        self.inner_optimizer.build(variables)
        if self.beta_optimizer is not None:
            learns = self.beta_optimizer.learns
            self._learned = [i for i, v in enumerate(variables) if learns(v)]
            self.beta_optimizer.build([variables[i] for i in self._learned])
        # Behind a function: Keras would count them among the optimizer's own.
        self._built_on = lambda: variables
        super().build(variables)

    def trains(self, variables):
        """Whether it was built on these variables, in any order."""
        return {id(v) for v in self._built_on()} == {id(v) for v in variables}

    @property
    def variables(self):
        ours = [] if self.beta_optimizer is None else self.beta_optimizer.variables
        return super().variables + self.inner_optimizer.variables + ours

    def stateless_apply(self, optimizer_variables, grads, trainable_variables):
        # Branched, not selected: to choose between old and new, XLA would copy both.
        finite = all_finite(grads)
        count = len(super().variables)
        own, inner = optimizer_variables[:count], optimizer_variables[count:]
        trained, inner = ops.cond(
            finite,
            lambda: self._stateless_step(inner, grads, trainable_variables),
            lambda: self._stateless_skip(inner, grads, trainable_variables),
        )
        own = [
            value + ops.cast(ops.logical_not(finite), value.dtype)
            if variable is self.skipped
            else value
            for variable, value in zip(super().variables, own, strict=True)
        ]
        return trained, own + inner

    def _stateless_step(self, inner, grads, values):
        count = len(self.inner_optimizer.variables)
        # It keeps state for the betas too, as in files of version 0.1.0. Gradients of
        # 0 add nothing to the norm by which gradients are clipped, and what the step
        # makes of the betas is not taken.
        for_student = list(grads)
        for i in self._learned:
            for_student[i] = ops.zeros_like(grads[i])
        trained, student = self.inner_optimizer.stateless_apply(
            inner[:count], for_student, values
        )
        if not self._learned:
            return trained, student + inner[count:]
        learned, ours = self.beta_optimizer.stateless_apply(
            inner[count:],
            [grads[i] for i in self._learned],
            [values[i] for i in self._learned],
        )
        for i, value in zip(self._learned, learned, strict=True):
            trained[i] = value
        return trained, student + ours

    def _stateless_skip(self, inner, grads, values):
        if not self._skips_itself:
            return list(values), list(inner)
        count = len(self.inner_optimizer.variables)
        _, student = self.inner_optimizer.stateless_apply(inner[:count], grads, values)
        return list(values), student + inner[count:]

    def apply(self, grads, trainable_variables=None):
        if not self.built:
            self.build(trainable_variables)
            self.built = True
        finite = all_finite(grads)
        if self._skips_itself:  # it counts, too, and so must see every gradient
            self._step_student(grads)
        run_if(finite, lambda: self._step(grads), lambda: self.skipped.assign_add(1))

    def _step(self, grads):
        if not self._skips_itself:
            self._step_student(grads)
        if self._learned:
            self.beta_optimizer.apply([grads[i] for i in self._learned])

    def _step_student(self, grads):
        variables = self._built_on()
        learned = [variables[i] for i in self._learned]
        # Where it averages over steps, it may overwrite all variables by averages.
        averages = innermost(self.inner_optimizer).use_ema
        held = [(v, ops.copy(v)) for v in learned] if averages else []
        pairs = enumerate(zip(grads, variables, strict=True))
        student = [pair for i, pair in pairs if i not in self._learned]
        if student:
            gradients, trained = zip(*student, strict=True)
            self.inner_optimizer.apply(list(gradients), list(trained))
        for variable, value in held:
            variable.assign(value)

    @property
    def _skips_itself(self):
        return isinstance(self.inner_optimizer, keras.optimizers.LossScaleOptimizer)

    @property
    def learning_rate(self):
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate):
        self.inner_optimizer.learning_rate = learning_rate

    @property
    def iterations(self):
        return self.inner_optimizer.iterations

    # Its own variables alone: Keras' saving comes to the inner optimizer by itself.

    def save_own_variables(self, store):
        for i, variable in enumerate(super().variables):
            store[str(i)] = ops.convert_to_numpy(variable)

    def load_own_variables(self, store):
        count = len(super().variables)
        if len(store.keys()) != count:
            raise ValueError(
                f"The optimizer's own state should have {count} numbers. Received: "
                f"{len(store.keys())}. Version 0.1.0 wrote such files for students in "
                "float16: `load_student_weights` brings the student out of them."
            )
        for i, variable in enumerate(super().variables):
            variable.assign(store[str(i)])

    def scale_loss(self, loss):
        return self.inner_optimizer.scale_loss(loss)

    def finalize_variable_values(self, var_list):
        self.inner_optimizer.finalize_variable_values(var_list)

    def get_config(self):
        inner = keras.saving.serialize_keras_object(self.inner_optimizer)
        return {"name": self.name, "inner_optimizer": inner}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        inner = keras.saving.deserialize_keras_object(
            config["inner_optimizer"], custom_objects=custom_objects
        )
        return cls(inner, name=config["name"])


def innermost(optimizer):
    """The optimizer in all wrappers, which has the settings that users choose."""
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer


def all_finite(gradients):
    """Whether no gradient holds NaN or infinity: a boolean scalar.

    Read off their sums, in which neither is ever lost: `ops.isfinite` of every entry
    takes several times as long. A gradient whose entries add up to more than float32
    holds counts as infinite, too.
    """
    sums = [_sum(gradient_values(g)) for g in gradients if g is not None]
    return ops.all(ops.isfinite(ops.stack(sums)))


def _sum(x):
    if keras.backend.standardize_dtype(x.dtype) == "float16":
        x = ops.cast(x, "float32")  # a sum of float16 soon is infinite
    return ops.cast(ops.sum(x), "float32")
