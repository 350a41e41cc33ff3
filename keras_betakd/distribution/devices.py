"""Batches that divide by the devices they are spread over."""

import keras


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
