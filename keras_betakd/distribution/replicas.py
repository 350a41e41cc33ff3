"""Replicas: copies of the model that each compute a part of the batch.

On JAX a program is written for the whole batch, however many devices compute it. In
TensorFlow's `MirroredStrategy` and in PyTorch's processes (`torchrun`) each replica
sees its own part alone, so what belongs to the whole batch is summed over all of them.
This module, like `keras_betakd.backends`, knows the backends by name.
"""

import os

import keras
from keras import ops

_SEED = "seed_generator_state"


def replica_count():
    """How many replicas share a batch, seen from inside a step; 1 on JAX."""
    return _COUNTS[keras.backend.backend()]()


def over_replicas(x):
    """The sum of `x` over all replicas, without gradient; `x` itself of a single one.

    Args:
        x: a tensor of one shape on all of them.
    """
    if replica_count() == 1:
        return x
    return _SUMS[keras.backend.backend()](ops.stop_gradient(x))


def process_position():
    """Which part of the data this process computes, of how many: `(index, count)`."""
    distribution = keras.distribution.distribution()
    if distribution is not None:
        count = min(distribution.num_model_replicas, distribution.num_processes)
        return distribution.data_shard_id, count
    if keras.backend.backend() == "torch" and _torch_count() > 1:
        import torch

        return torch.distributed.get_rank(), _torch_count()
    return 0, 1


def expect_joined():
    """Raises in a process of `torchrun` that knows nothing of the others.

    It would train a model of its own without a word.
    """
    if keras.backend.backend() != "torch" or _torch_count() > 1:
        return
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size > 1 and "TORCHELASTIC_RUN_ID" in os.environ:
        raise RuntimeError(
            f"torchrun started {size} processes, but this one has not joined the "
            "others, so each would train a model of its own. Call "
            '`torch.distributed.init_process_group("nccl")` ("gloo" without GPUs) '
            "before `fit`. Received: WORLD_SIZE="
            f"{size}, and no process group"
        )


def gradients_are_summed():
    """Whether the engine adds the replicas' gradients up; else it takes their mean."""
    return keras.backend.backend() == "tensorflow"


def joined_gradients(trained, variables):
    """What makes the gradients of all of PyTorch's processes one.

    Args:
        trained: the variables whose gradients they are.
        variables: all variables; set to what the first process has.

    Returns:
        A function that takes a loss and returns it, watched by a
        `DistributedDataParallel`: backwards from there, each gradient becomes the mean
        over the processes. Elsewhere it returns the loss as it is.
    """
    if keras.backend.backend() != "torch" or replica_count() == 1:
        return lambda loss: loss
    import torch

    for variable in variables:
        if variable.name != _SEED:  # each replica drops out units of its own
            torch.distributed.broadcast(variable.value.data, 0)
    watched = torch.nn.Identity()
    watched.trained = torch.nn.ParameterList([v.value for v in trained])
    # A part without pictures gives the layers between them and the text no gradient.
    parallel = torch.nn.parallel.DistributedDataParallel(
        watched, find_unused_parameters=True
    )
    # Not the module, which Keras would take for a layer.
    return lambda loss: parallel(loss)


def _tensorflow_count():
    import tensorflow as tf

    if tf.distribute.get_replica_context() is None:
        return 1  # a model is being built, for all of them
    return tf.distribute.get_strategy().num_replicas_in_sync


def _tensorflow_sum(x):
    import tensorflow as tf

    return tf.distribute.get_replica_context().all_reduce("SUM", x)


def _torch_count():
    import torch

    parallel = torch.distributed
    if not parallel.is_available() or not parallel.is_initialized():
        return 1
    return parallel.get_world_size()


def _torch_sum(x):
    import torch

    if x.device.type == "meta":  # Keras asks for shapes alone
        return x
    total = x.clone()
    torch.distributed.all_reduce(total)
    return total


_COUNTS = {
    "jax": lambda: 1,
    "tensorflow": _tensorflow_count,
    "torch": _torch_count,
}
_SUMS = {"tensorflow": _tensorflow_sum, "torch": _torch_sum}
