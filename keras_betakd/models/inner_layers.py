"""Finds inner layers of a model by name, and records what they return as it runs."""

import contextlib

from keras import ops

from keras_betakd.models.hooks import recorded


def find_layer(model, name):
    """The layer of a model that a name stands for.

    Args:
        model: a `keras.Model`. Of a keras-hub task, names are looked up in its
            backbone, too.
        name: the name of a layer as `model.get_layer` takes it, or attribute; of
            layers inside of layers, with a slash between: `"vision_encoder/block_3"`.

    Raises:
        ValueError: there is no such layer.
    """
    roots = [getattr(model, "backbone", model), model]
    for root in roots:
        found = root
        for part in name.split("/"):
            found = _child(found, part)
            if found is None:
                break
        else:
            return found
    names = [layer.name for layer in getattr(roots[0], "layers", [])]
    raise ValueError(
        f"{type(model).__name__} has no layer '{name}'. Its layers are {names}; one "
        "inside of another is named with a slash between the two."
    )


def _child(owner, name):
    """The layer of this name, or attribute, that a layer holds; `None` without one."""
    for layer in getattr(owner, "layers", None) or []:
        if layer.name == name:
            return layer
    found = getattr(owner, name, None)
    return found if callable(getattr(found, "call", None)) else None


def layer_width(layer):
    """The last dimension of a layer's output; `None` where only a batch tells it."""
    try:
        return layer.output.shape[-1]
    except (AttributeError, ValueError):  # it was not called on symbolic inputs
        return None


class LayerRecorder:
    """Records the outputs of inner layers of a model while it runs.

    Args:
        model: a `keras.Model`.
        names: names of layers, as `find_layer` takes them.

    Raises:
        ValueError: there is no such layer.
    """

    def __init__(self, model, names):
        self._layers = {name: find_layer(model, name) for name in sorted(names)}
        self._calls = {}

    @property
    def layers(self):
        return list(self._layers.values())

    @contextlib.contextmanager
    def recording(self):
        """A context in which the model runs once."""
        with recorded(*self._layers.values()) as calls:
            self._calls = dict(zip(self._layers, calls, strict=True))
            yield

    def outputs(self):
        """Dict of the tensor that each layer has returned.

        Raises:
            ValueError: a layer did not run, ran several times, or returned no tensor.
        """
        return {name: _output(name, calls) for name, calls in self._calls.items()}


def _output(name, calls):
    if len(calls) != 1:
        raise ValueError(
            f"The layer '{name}' ran {len(calls)} times in one pass of its model, so "
            "it has not one output to compare. Name a layer that runs once."
        )
    output = calls[0][2]
    if not ops.is_tensor(output):
        raise ValueError(
            f"The layer '{name}' returns a {type(output).__name__} of several values, "
            "of which none can be chosen here. Name a layer that returns one tensor, "
            "for example a `keras.layers.Identity` behind the value that is meant."
        )
    return output
