"""The number of devices over which the rows of a batch are spread."""

import keras


def batch_parts(model):
    """The number of equal parts into which a batch of this process is split.

    The current `keras.distribution` decides it, or the `tf.distribute.Strategy` under
    which the model was created.
    """
    distribution = keras.distribution.distribution()
    if distribution is not None:
        replicas = distribution.num_model_replicas
        return max(1, replicas // distribution.num_processes)
    strategy = getattr(model, "distribute_strategy", None)
    return 1 if strategy is None else strategy.num_replicas_in_sync


def parts_of_batch():
    """The number of devices over which `keras.distribution` spreads a batch's rows."""
    distribution = keras.distribution.distribution()
    return 1 if distribution is None else distribution.num_model_replicas


def spread_by_part(x):
    """Places each part of `x`, (parts, ...), on the device of its rows of the batch."""
    distribution = keras.distribution.distribution()
    axes = [distribution.batch_dim_name] + [None] * (len(x.shape) - 1)
    layout = keras.distribution.TensorLayout(axes, distribution.device_mesh)
    return keras.distribution.distribute_tensor(x, layout)
