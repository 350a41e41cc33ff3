"""Compares the tensors of a checkpoint with those of a model, and loads them."""

import dataclasses
import math
from typing import Any

import ml_dtypes  # noqa: F401  (teaches NumPy what bfloat16 is)
import numpy as np

from keras_betakd.vision_language.fields import shown
from keras_betakd.vision_language.tensor_formats import FLOATS

# The most lines of each kind of mismatch in an error message.
_LISTED = 20


@dataclasses.dataclass(frozen=True)
class Target:
    """The variable that a tensor of a checkpoint is assigned to.

    Attributes:
        variable: the Keras variable.
        shape: the tensor's shape in the checkpoint.
        axes: the permutation of its axes, before it is reshaped to the variable's.
    """

    variable: Any
    shape: tuple[int, ...]
    axes: tuple[int, ...]

    def assign(self, array):
        """Assigns a tensor of the checkpoint, a NumPy array, to the variable."""
        self.variable.assign(self.values(array))

    def values(self, array):
        """A tensor of the checkpoint, a NumPy array, in the variable's form."""
        values = np.transpose(array, self.axes).reshape(self.variable.shape)
        with np.errstate(over="ignore"):  # the caller looks for infinite values
            return values.astype(self.variable.dtype, copy=False)


def target_of(variable):
    """The `Target` of a dense kernel, an embedding or a vector in PyTorch's form.

    Heads and head widths are one axis there, and kernels are (outputs, inputs).
    """
    path, shape = variable.path, tuple(variable.shape)
    if path.endswith(("kernel", "reverse_embeddings")):
        inputs = 2 if path.endswith("attention_output/kernel") else 1
        sizes = math.prod(shape[inputs:]), math.prod(shape[:inputs])
        return Target(variable, sizes, (1, 0))
    if path.endswith("embeddings"):
        return Target(variable, shape, (0, 1))
    return Target(variable, (math.prod(shape),), (0,))


def by_canonical_name(sources, canonical_name):
    """Dict of canonical name to the files and the name there; later files win.

    Args:
        sources: list of `TensorFiles`.
        canonical_name: function of a tensor's name to its canonical name, or to `None`
            for tensors that go unused.

    Raises:
        ValueError: a folder has one tensor under two names.
    """
    found = {}
    for files in sources:
        own = {}
        for name in files.shapes:
            canonical = canonical_name(name)
            if canonical in own:
                raise ValueError(
                    f"The folder '{files.folder}' has one tensor under two names, "
                    f"{own[canonical][1]!r} and {name!r}. It mixes two checkpoints; "
                    "download one into a folder of its own."
                )
            if canonical is not None:
                own[canonical] = files, name
        found |= own
    return found


def check_layers(arguments, found, config_files):
    """Raises for more layers than tensors, before the tensors of each are listed.

    Args:
        arguments: dict, those of the backbone, with `num_layers` and
            `vision_num_layers`.
        found: dict, the result of `by_canonical_name`.
        config_files: text that says where the numbers come from.
    """
    for key in ("num_layers", "vision_num_layers"):
        # Each layer has a tensor at least; for a wild number none is listed.
        if arguments[key] > len(found):
            raise ValueError(
                f"{config_files} describes {shown(arguments[key])} layers ({key}), but "
                f"there are only {len(found)} tensors. Download config.json again."
            )


def check_tensors(wanted, found, folder):
    """Raises for all mismatches at once, before a model is made.

    Args:
        wanted: dict of canonical name to shape, of all tensors of the model.
        found: dict, the result of `by_canonical_name`.
        folder: path of the checkpoint, for the error message.

    Raises:
        ValueError: tensors are missing, not known, of another shape or of another type;
            the message lists them.
    """
    missing = [name for name in wanted if name not in found]
    extra = [name for canonical, (_, name) in found.items() if canonical not in wanted]
    shapes = {name: files.shapes[theirs] for name, (files, theirs) in found.items()}
    misshapen = [
        f"{name}: {shapes[name]} instead of {shape}"
        for name, shape in wanted.items()
        if name in shapes and shapes[name] != shape
    ]
    types = {name: files.types[theirs] for name, (files, theirs) in found.items()}
    mistyped = [
        f"{name}: {types[name]} instead of one of {FLOATS}"
        for name in wanted
        if name in types and types[name] not in FLOATS
    ]
    kinds = {
        "missing": missing,
        "not known": extra,
        "of another shape": misshapen,
        "of another type": mistyped,
    }
    if not any(kinds.values()):
        return
    raise ValueError(
        f"The tensors in '{folder}' are not those of the model that its config.json "
        "describes. Check that the folder is complete and unmixed.\n"
        + "\n".join(_listed(kind, lines) for kind, lines in kinds.items() if lines)
    )


def _listed(kind, lines):
    more = [f"and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
    return "\n  ".join([f"{len(lines)} {kind}:", *lines[:_LISTED], *more])


def load_tensors(targets, found):
    """Reads the tensors one at a time, and assigns each to its variable.

    Args:
        targets: dict of canonical name to `Target`.
        found: dict, the result of `by_canonical_name`, which `check_tensors` passed.

    Raises:
        ValueError: a tensor holds NaN or infinite numbers.
    """
    by_files = {}
    for canonical, (files, name) in found.items():
        by_files.setdefault(files, {})[name] = targets[canonical]
    for files, names in by_files.items():
        for name, array in files.read(names):
            values = names[name].values(array)
            _check_finite(values, array, name, files.paths[name])
            names[name].variable.assign(values)


def _check_finite(values, array, name, path):
    # Finite numbers have a finite sum in float64, and it needs no second array.
    if np.isfinite(np.sum(values, dtype="float64")):
        return
    if np.isfinite(np.sum(array, dtype="float64")):
        raise ValueError(
            f"The tensor {name!r} in '{path}' has numbers that are infinite in "
            f"{values.dtype}. Load the model with another `dtype`, such as 'bfloat16'."
        )
    raise ValueError(
        f"The tensor {name!r} in '{path}' holds NaN or infinite numbers, so every "
        "output of the model would. Download the file again; if it was trained to "
        "that, take an earlier checkpoint."
    )
