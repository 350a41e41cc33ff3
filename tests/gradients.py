"""One helper for gradients on whichever backend runs the suite."""

import keras
import numpy as np
from keras import ops


def value_and_grad(fn, *arrays):
    """Evaluates `fn`, from tensors to a scalar, and differentiates it.

    Args:
        fn: takes one tensor per array and returns a scalar tensor.
        *arrays: NumPy arrays, differentiated one by one in their own dtype.

    Returns:
        The value as an array, and a list with the gradient towards every array;
        zeros where `fn` does not depend on one.
    """
    backend = keras.config.backend()
    tensors = [
        # Named, since torch would turn a float64 array into float32 of its own accord.
        ops.convert_to_tensor(array, dtype=keras.backend.standardize_dtype(array.dtype))
        for array in arrays
    ]
    if backend == "jax":
        import jax

        value, grads = jax.value_and_grad(fn, tuple(range(len(arrays))))(*tensors)
    elif backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value = fn(*tensors)
        grads = tape.gradient(value, tensors, unconnected_gradients="zero")
    else:
        import torch

        tensors = [tensor.detach().requires_grad_() for tensor in tensors]
        value = fn(*tensors)
        grads = torch.autograd.grad(value, tensors, allow_unused=True)
        grads = [
            torch.zeros_like(tensor) if grad is None else grad
            for tensor, grad in zip(tensors, grads, strict=True)
        ]
    to_numpy = ops.convert_to_numpy
    return np.asarray(to_numpy(value)), [np.asarray(to_numpy(grad)) for grad in grads]
