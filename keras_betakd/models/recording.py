"""Reads what layers inside a model make while the model runs once."""

import contextlib

from keras import ops


@contextlib.contextmanager
def recorded(*layers):
    """Within, notes each call of the layers.

    Args:
        *layers: built layers. Their `call` is replaced within and there again
            afterwards: a functional model holds its layers, and running it a second
            time for the sake of a layer in its middle would cost what it cost at first.

    Yields:
        For each layer, a list of `(args, kwargs, output)`, one for each call. The
        output must be a tensor.
    """
    calls = [[] for _ in layers]
    before = [vars(layer).get("call") for layer in layers]
    for layer, found in zip(layers, calls, strict=True):
        layer.call = _noting(layer.call, found)
    try:
        yield calls
    finally:
        for layer, call in zip(layers, before, strict=True):
            if call is None:
                del layer.call
            else:  # replaced already by whoever is around this
                layer.call = call


def _noting(compute, found):
    def call(*args, **kwargs):
        output = compute(*args, **kwargs)
        # A copy: keras-hub scales queries in place, which on PyTorch changes what a
        # layer returned.
        found.append((args, kwargs, ops.copy(output)))
        return output

    return call
