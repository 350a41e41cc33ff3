"""Sums and gradients over replicas that each compute a part of the batch.

On JAX a program is written for the global batch, on however many devices it runs. With
TensorFlow's `MirroredStrategy` and in PyTorch's processes (`torchrun`) each replica
computes on its own part of the batch alone, so sums over the global batch are reduced
over the replicas. This module, `keras_betakd.backends` and `keras_betakd.memory` are
the only ones that name a backend.
"""

import os

import keras
from keras import ops

_SEED = "seed_generator_state"


def replica_count():
    """The number of replicas that share a batch, inside a step; 1 on JAX."""
    return _COUNTS[keras.backend.backend()]()


def over_replicas(x):
    """The sum of `x` over all replicas, without gradient; `x` itself if there is one.

    Args:
        x: a tensor of the same shape on all replicas.
    """
    if replica_count() == 1:
        return x
    return _SUMS[keras.backend.backend()](ops.stop_gradient(x))


def process_position():
    """`(index, count)`: which part of the data this process computes, of how many."""
    distribution = keras.distribution.distribution()
    if distribution is not None:
        count = min(distribution.num_model_replicas, distribution.num_processes)
        return distribution.data_shard_id, count
    if keras.backend.backend() == "torch" and _torch_count() > 1:
        import torch

        return torch.distributed.get_rank(), _torch_count()
    return 0, 1


def expect_process_group():
    """Raises in a process that `torchrun` started if it has no process group.

    Without one, each process would silently train a model of its own.
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
    """Whether the backend sums the replicas' gradients; otherwise it averages them."""
    return keras.backend.backend() == "tensorflow"


def reduced_gradients(trained, variables):
    """Makes PyTorch's processes average their gradients in each backward pass.

    Sets the variables of all processes to the values of the first one.

    Args:
        trained: the variables whose gradients are averaged.
        variables: all variables.

    Returns:
        A function that returns the loss it takes, passed through a
        `DistributedDataParallel`: its backward pass replaces each gradient by the mean
        over the processes. On other backends, or with one process, the identity.
    """
    if keras.backend.backend() != "torch" or replica_count() == 1:
        return lambda loss: loss
    import torch

    for variable in variables:
        if variable.name != _SEED:  # dropout differs between the replicas
            torch.distributed.broadcast(variable.value.data, 0)
    watched = torch.nn.Identity()
    watched.trained = torch.nn.ParameterList([v.value for v in trained])
    # The layers that only images pass get no gradient from a part without images.
    parallel = torch.nn.parallel.DistributedDataParallel(
        watched, find_unused_parameters=True
    )
    # Wrapped, since Keras would track the module itself as a layer.
    return lambda loss: parallel(loss)


def _tensorflow_count():
    import tensorflow as tf

    if tf.distribute.get_replica_context() is None:
        return 1  # outside of a step: a model is being built for all replicas
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

    if x.device.type == "meta":  # Keras computes shapes only
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
