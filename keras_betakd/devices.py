"""Batches that divide by the devices they are spread over."""

import keras
import numpy as np
from keras import ops, tree


def data_parallel_devices():
    """How many parts a batch is split into by the current `keras.distribution`."""
    distribution = keras.distribution.distribution()
    axis = getattr(distribution, "batch_dim_name", None)
    if axis is None:
        return 1
    mesh = distribution.device_mesh
    return mesh.shape[mesh.axis_names.index(axis)]


def filled_up(x, y, sample_weight, batch_size=None):
    """The batches, with copies of the last example of weight 0 behind the last one.

    A part of a batch for each device must be of one size. An example without weight
    changes no number but Keras' own mean of "loss" over batches, which counts rows.

    Args:
        x: dict of arrays, nested.
        y, sample_weight: (N, ...) arrays.
        batch_size: the size that Keras will cut batches to; N if `None`.

    Returns:
        `(x, y, sample_weight)`.
    """
    size, devices = len(y), data_parallel_devices()
    last = size % batch_size if batch_size else size
    missing = -last % devices
    if not missing:
        return x, y, sample_weight

    def fill(value):
        value = ops.convert_to_numpy(value)
        return np.concatenate([value, np.repeat(value[-1:], missing, axis=0)])

    x, y, weight = tree.map_structure(fill, (x, y, sample_weight))
    weight[size:] = 0
    return {**x, "sample_weight": weight}, y, weight
