"""What the energies share that change while training goes on."""

import keras
from keras import ops


class EnergySchedule(keras.layers.Layer):
    """State of an energy that moves once an optimizer step.

    A layer, so that its variables are saved and seen by every backend's trainer. A
    subclass makes them in its constructor and says in `state` how they move.

    Attributes:
        shown_as: what a distiller's logs call `shown()`, after the energy's name.
    """

    shown_as = "t"

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.calls = self.scalar("calls")
        self.built = True

    def scalar(self, name, initial=0.0, trainable=False):
        """A scalar variable; `initializers.Constant` would round to float32 on
        TensorFlow."""
        return self.add_weight(
            shape=(),
            initializer=lambda shape, dtype: ops.convert_to_tensor(initial, dtype),
            trainable=trainable,
            # Of replicas, all of which compute the same.
            aggregation="none" if trainable else "only_first_replica",
            name=name,
        )

    def update(self, energy, counts=True, every=1):
        """Moves the state; called once for each training batch.

        Args:
            energy: scalar, the batch's mean energy.
            counts: whether the batch has a supervised token.
            every: batches in an optimizer step (gradient accumulation); the state moves
                with the first of them.
        """
        calls = ops.convert_to_tensor(self.calls)
        step = ops.floor(calls / every)
        moves = step * every == calls
        energy = ops.stop_gradient(ops.cast(energy, self.calls.dtype))
        usable = ops.logical_and(counts, ops.isfinite(energy))
        usable = ops.logical_and(moves, usable)
        energy = ops.where(usable, energy, 0.0)
        state = [*self.state(energy, usable, moves, step), (self.calls, calls + 1.0)]
        # Only now: on PyTorch assigning changes what was read from the variable.
        for variable, value in state:
            variable.assign(value)

    def state(self, energy, usable, moves, step):
        """The state after a batch.

        Args:
            energy: scalar, its mean energy; 0 where it is not `usable`.
            usable: whether it has a finite energy and begins an optimizer step.
            moves: whether it begins an optimizer step.
            step: the optimizer steps before it.

        Returns:
            Pairs of a variable and its new value.
        """
        raise NotImplementedError

    def shown(self):
        """The number that training shows, a scalar tensor."""
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
