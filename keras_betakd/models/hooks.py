"""Reads what layers inside a model make while the model runs once."""

import contextlib
import functools

from keras import ops


@contextlib.contextmanager
def replaced(layer, function):
    """Within, calling the layer calls `function(compute, *args, **kwargs)`.

    Args:
        layer: a built layer. Its `call` is replaced within and there again afterwards:
            a functional model holds its layers, and there is no other way to what one
            in its middle makes.
        function: takes the layer's own `call`, then its arguments.
    """
    before, compute = vars(layer).get("call"), layer.call
    layer.call = functools.partial(function, compute)
    try:
        yield
    finally:
        if before is None:
            del layer.call
        else:  # replaced already by whoever is around this
            layer.call = before


@contextlib.contextmanager
def recorded(*layers):
    """Within, notes each call of the layers.

    Args:
        *layers: built layers. Running a model a second time for the sake of a layer in
            its middle would cost what it cost at first.

    Yields:
        For each layer, a list of `(args, kwargs, output)`, one for each call. The
        output must be a tensor.
    """
    calls = [[] for _ in layers]
    with contextlib.ExitStack() as stack:
        for layer, found in zip(layers, calls, strict=True):
            stack.enter_context(replaced(layer, functools.partial(_note, found)))
        yield calls


def _note(found, compute, *args, **kwargs):
    output = compute(*args, **kwargs)
    # A copy: keras-hub scales queries in place, which on PyTorch changes what a
    # layer returned.
    found.append((args, kwargs, ops.copy(output)))
    return output
