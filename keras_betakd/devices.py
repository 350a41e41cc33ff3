"""Batches that divide by the devices they are spread over."""

import keras
import numpy as np
from keras import ops, tree


def batch_parts(model):
    """Into how many parts of one size a batch of this process is split.

    By the current `keras.distribution`, or by the `tf.distribute.Strategy` under which
    the model was made.
    """
    distribution = keras.distribution.distribution()
    if distribution is not None:
        replicas = distribution.num_model_replicas
        return max(1, replicas // distribution.num_processes)
    strategy = getattr(model, "distribute_strategy", None)
    return 1 if strategy is None else strategy.num_replicas_in_sync


def parts_of_batch():
    """Over how many devices `keras.distribution` spreads the rows of a batch."""
    distribution = keras.distribution.distribution()
    return 1 if distribution is None else distribution.num_model_replicas


def spread_by_part(x):
    """`x`, (parts, ...), with each part where its rows of the batch are."""
    distribution = keras.distribution.distribution()
    axes = [distribution.batch_dim_name] + [None] * (len(x.shape) - 1)
    layout = keras.distribution.TensorLayout(axes, distribution.device_mesh)
    return keras.distribution.distribute_tensor(x, layout)


def filled_up(x, y, sample_weight, parts, batch_size=None):
    """The batches, with copies of the last example of weight 0 behind the last one.

    A part of a batch for each device must be of one size. An example without weight
    changes no number.

    Args:
        x: dict of arrays, nested.
        y, sample_weight: (N, ...) arrays.
        parts: what every batch must be divisible by.
        batch_size: the size that Keras will cut batches to; N if `None`.

    Returns:
        `(x, y, sample_weight)`.
    """
    if parts > 1:
        x = tree.map_structure(_no_bool, x)
    size = len(y)
    last = size % batch_size if batch_size else size
    missing = -last % parts
    if not missing:
        return x, y, sample_weight

    def fill(value):
        value = ops.convert_to_numpy(value)
        return np.concatenate([value, np.repeat(value[-1:], missing, axis=0)])

    x, y, weight = tree.map_structure(fill, (x, y, sample_weight))
    weight[size:] = 0
    return {**x, "sample_weight": weight}, y, weight


def _no_bool(value):
    """Masks as numbers: Keras takes the mean of a first batch over TensorFlow's
    replicas, which truth values do not have."""
    value = ops.convert_to_numpy(value)
    return value.astype("int32") if value.dtype == bool else value
