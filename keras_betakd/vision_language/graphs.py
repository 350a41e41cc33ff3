"""Runs a preprocessor, which is plain Python, inside the graphs of `tf.data`."""

import sys


def in_graph():
    """Whether TensorFlow is building a graph, as where `fit` maps a preprocessor."""
    tf = sys.modules.get("tensorflow")
    return tf is not None and not tf.executing_eagerly()


def outside_graph(call, x, specs):
    """What `call` returns for a dict of tensors, computed when the graph runs.

    Args:
        call: function of a dict of arrays, which returns `(inputs, y, sample_weight)`.
        x: dict of tensors of the graph.
        specs: the shape and dtype of each array that it returns: `(inputs, y, weight)`,
            of which the inputs are a dict.
    """
    import tensorflow as tf

    inputs, *rest = specs
    names = sorted(inputs)
    flat = [*(inputs[name] for name in names), *rest]

    def run(*values):
        found, y, weight = call(dict(zip(x, values, strict=True)))
        return (*(found[name] for name in names), y, weight)

    tensors = tf.numpy_function(run, list(x.values()), [dtype for _, dtype in flat])
    for tensor, (shape, _) in zip(tensors, flat, strict=True):
        tensor.set_shape(shape)
    *arrays, y, weight = tensors
    return dict(zip(names, arrays, strict=True)), y, weight
