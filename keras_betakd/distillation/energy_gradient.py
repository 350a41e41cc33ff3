"""Warns of energies of a user's own from which no gradient flows to the student."""

import warnings

import numpy as np
from keras import ops

from keras_betakd.backends import value_and_gradient

# How far the student of each row is from its teacher: an energy may be flat far away,
# or close by.
_DISTANCES = np.array([[0.01], [0.1], [1.0], [10.0]], "float32")


def warn_of_no_gradient(energies, view):
    """Warns of energies between logits whose derivative is 0 wherever it is tried.

    They would be reported, and weighted by their betas, like any other.

    Args:
        energies: dict of energies by name. Those of this library are not tried.
        view: the student's `ModelView`.
    """
    own = {
        name: energy
        for name, energy in energies.items()
        if not type(energy).__module__.startswith("keras_betakd.")
    }
    classes = _classes(view) if own else None
    for name, energy in own.items():
        if classes and not energy.features and _is_flat(energy, classes):
            warnings.warn(
                f"The energy '{name}' has no gradient: its derivatives with respect to "
                "the student's logits are all 0, at logits near those of a teacher and "
                "far from them, so that the student learns nothing from it. `argmax`, "
                "comparisons, casts to integers, `ops.stop_gradient` and functions of "
                f"NumPy have none. Let `{type(energy).__name__}` compute its values "
                "from the student's logits by differentiable functions of `keras.ops`.",
                stacklevel=3,
            )


def _classes(view):
    """The number of the student's logits; `None` where only a batch tells it."""
    if hasattr(view, "logit_size"):
        return view.logit_size
    shape = getattr(view.model, "output_shape", None)
    return shape[-1] if isinstance(shape, tuple) and type(shape[-1]) is int else None


def _is_flat(energy, classes):
    """Whether an energy has values, and none of its derivatives is other than 0."""
    rng = np.random.default_rng(0)  # no draw of the training's own generators
    teacher = rng.normal(size=(len(_DISTANCES), classes)).astype("float32")
    student = teacher + _DISTANCES * rng.normal(size=teacher.shape)
    target = energy.target(
        ops.convert_to_tensor(teacher), ops.zeros(len(teacher), dtype="int32")
    )
    try:
        value, gradient = value_and_gradient(
            lambda logits: energy.call(target, logits),
            ops.convert_to_tensor(student, dtype="float32"),
        )
    except Exception:  # what it cannot take shows in training, by a message of its own
        return False
    return bool(ops.any(value != 0)) and not bool(ops.any(gradient != 0))
