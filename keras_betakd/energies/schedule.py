"""`EnergySchedule`: the state of an energy that changes from step to step."""

import keras
from keras import ops


class EnergySchedule(keras.layers.Layer):
    """State of an energy that is updated once an optimizer step.

    A layer, so that Keras saves its variables and every backend's trainer tracks them.
    A subclass creates them in its constructor and returns their updates from `state`.

    Attributes:
        shown_as: the name of `shown()` in a distiller's logs, after the energy's name
            and an underscore.
    """

    shown_as = "t"

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.calls = self.scalar("calls")
        self.built = True

    def scalar(self, name, initial=0.0, trainable=False):
        """Creates a scalar variable with an initial value."""
        return self.add_weight(
            shape=(),
            # `initializers.Constant` would round to float32 on TensorFlow.
            initializer=lambda shape, dtype: ops.convert_to_tensor(initial, dtype),
            trainable=trainable,
            # Every replica computes the same state.
            aggregation="none" if trainable else "only_first_replica",
            name=name,
        )

    def update(self, energy, counts=True, every=1):
        """Updates the state; called once for each training batch.

        Args:
            energy: scalar, the batch's mean energy.
            counts: whether the batch has a supervised token.
            every: batches in an optimizer step (gradient accumulation); the state
                changes at the first of them.
        """
        calls = ops.convert_to_tensor(self.calls)
        step = ops.floor(calls / every)
        moves = step * every == calls
        energy = ops.stop_gradient(ops.cast(energy, self.calls.dtype))
        usable = ops.logical_and(counts, ops.isfinite(energy))
        usable = ops.logical_and(moves, usable)
        energy = ops.where(usable, energy, 0.0)
        state = [*self.state(energy, usable, moves, step), (self.calls, calls + 1.0)]
        # Assigned last: on PyTorch that changes the tensors read from the variables.
        for variable, value in state:
            variable.assign(value)

    def state(self, energy, usable, moves, step):
        """The state after a batch; to be implemented by subclasses.

        Args:
            energy: scalar, the batch's mean energy; 0 where it is not `usable`.
            usable: whether the batch has a supervised token and a finite energy, and
                begins an optimizer step.
            moves: whether the batch begins an optimizer step.
            step: the number of optimizer steps before the batch.

        Returns:
            Pairs of a variable and its new value.
        """
        raise NotImplementedError

    def shown(self):
        """The number that training reports, a scalar tensor."""
        raise NotImplementedError


def expect_steps(total_steps):
    """Raises if `total_steps` is not a positive integer."""
    if (
        not isinstance(total_steps, int)
        or isinstance(total_steps, bool)
        or total_steps < 1
    ):
        raise ValueError(
            "`total_steps` must be a positive integer, the optimizer steps of the "
            f"whole training. Received: total_steps={total_steps!r}"
        )
