"""Replaces or records a layer's call while the model runs."""

import contextlib
import functools

import keras
from keras import ops


@contextlib.contextmanager
def replaced(layer, function):
    """Within, calling the layer calls `function(compute, *args, **kwargs)`.

    It replaces the layer's `call` and restores it afterwards. A functional model holds
    its layers, so there is no other access to one in its middle.

    Args:
        layer: a built layer.
        function: a function of the layer's own `call`, then its arguments.
    """
    before, compute = vars(layer).get("call"), layer.call
    layer.call = functools.partial(function, compute)
    try:
        yield
    finally:
        if before is None:
            del layer.call
        else:  # an outer context has replaced it already
            layer.call = before


def called(layer, function, *args):
    """Calls `function(layer, *args)` as if it were the layer's own call.

    What `replaced` has put in place of that runs around it.
    """
    compute = functools.partial(function, layer)
    hook = vars(layer).get("call")
    return compute(*args) if hook is None else hook.func(compute, *args)


@contextlib.contextmanager
def recorded(*layers):
    """Within, records each call of the layers, with its arguments and its output.

    The model thus need not run a second time to get the outputs of inner layers.

    Args:
        *layers: built layers.

    Yields:
        For each layer, a list of `(args, kwargs, output)`, one for each call.
    """
    calls = [[] for _ in layers]
    with contextlib.ExitStack() as stack:
        for layer, found in zip(layers, calls, strict=True):
            stack.enter_context(replaced(layer, functools.partial(_record, found)))
        yield calls


def _record(found, compute, *args, **kwargs):
    output = compute(*args, **kwargs)
    # A copy: keras-hub scales queries in place, which on PyTorch changes what a
    # layer returned.
    found.append((args, kwargs, keras.tree.map_structure(ops.copy, output)))
    return output
