"""`FiniteStepsOptimizer`: an optimizer that skips steps with non-finite gradients."""

import keras
from keras import ops

from keras_betakd.backends import gradient_values, run_if


@keras.saving.register_keras_serializable(package="keras_betakd")
class FiniteStepsOptimizer(keras.optimizers.Optimizer):
    """Wraps an optimizer, and skips the steps whose gradients are not finite.

    A gradient with NaN or infinity in it changes no variable: not the model's, not the
    optimizer's moments, not its count of steps. `BetaKDDistiller.compile` wraps the
    optimizer that it is given, except a `keras.optimizers.LossScaleOptimizer`, which
    skips such steps itself.

    Args:
        inner_optimizer: the `keras.optimizers.Optimizer` that makes the steps.
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

    def __init__(self, inner_optimizer, name=None):
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer = inner_optimizer

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
        super().build(variables)

    @property
    def variables(self):
        return super().variables + self.inner_optimizer.variables

    def stateless_apply(self, optimizer_variables, grads, trainable_variables):
        # Branched, not selected: to choose between old and new, XLA would copy both.
        finite = all_finite(grads)
        count = len(super().variables)
        own, inner = optimizer_variables[:count], optimizer_variables[count:]
        trained, inner = ops.cond(
            finite,
            lambda: self.inner_optimizer.stateless_apply(
                inner, grads, trainable_variables
            ),
            lambda: (list(trainable_variables), list(inner)),
        )
        own = [
            value + ops.cast(ops.logical_not(finite), value.dtype)
            if variable is self.skipped
            else value
            for variable, value in zip(super().variables, own, strict=True)
        ]
        return trained, own + inner

    def apply(self, grads, trainable_variables=None):
        if not self.built:
            self.build(trainable_variables)
            self.built = True
        run_if(
            all_finite(grads),
            lambda: self.inner_optimizer.apply(grads, trainable_variables),
            lambda: self.skipped.assign_add(1),
        )

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
