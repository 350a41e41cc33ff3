"""Gradients on whichever backend runs the suite, and slopes to compare them with."""

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


def compiled_value_and_grads(fn, count):
    """`fn`, from tensors to a scalar and another output, made ready for many calls.

    Args:
        fn: what to differentiate; compiled where a backend gains by it.
        count: how many of its arguments, the first ones, to differentiate by.

    Returns:
        A function of NumPy arrays that gives value, other output, and the gradients.
    """
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        run = jax.jit(jax.value_and_grad(fn, tuple(range(count)), has_aux=True))
    elif backend == "tensorflow":
        import tensorflow as tf

        @tf.function
        def run(*tensors):
            with tf.GradientTape() as tape:
                tape.watch(tensors[:count])
                result = fn(*tensors)
            return result, tape.gradient(
                result[0], tensors[:count], unconnected_gradients="zero"
            )
    else:
        import torch

        def run(*tensors):
            first = [tensor.requires_grad_() for tensor in tensors[:count]]
            result = fn(*first, *tensors[count:])
            grads = torch.autograd.grad(result[0], first, allow_unused=True)
            return result, [
                torch.zeros_like(x) if g is None else g
                for x, g in zip(first, grads, strict=True)
            ]

    def call(*arrays):
        result, grads = run(*(ops.convert_to_tensor(x) for x in arrays))
        to_numpy = ops.convert_to_numpy
        return *map(to_numpy, result), [to_numpy(grad) for grad in grads]

    return call


def slopes(value, *arrays, step=1e-5):
    """Central differences of a function of float64 arrays, with respect to each.

    Args:
        value: function of the arrays, which returns a number.
        step: by how much a number is moved.
    """
    found = [np.zeros_like(x) for x in arrays]
    for i, x in enumerate(arrays):
        for index in np.ndindex(*x.shape):
            ends = []
            for sign in (1, -1):
                moved = [np.array(other) for other in arrays]
                moved[i][index] += sign * step
                ends.append(value(*moved))
            found[i][index] = (ends[0] - ends[1]) / (2 * step)
    return found
