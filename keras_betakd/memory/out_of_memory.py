"""Errors of memory that ran out point to the plan."""

import contextlib

import keras

NOTE = (
    "The training step did not fit into memory. `print(distiller.memory_plan(batch))` "
    "says, without running a step, what takes it and what would save most; "
    '"Out of memory" in docs/troubleshooting.md lists what helps.'
)
# What the messages say, also where an error has been raised anew as another: Keras does
# so within layers.
_MESSAGES = {
    "torch": ("out of memory", "can't allocate memory", "not enough memory"),
    "jax": ("RESOURCE_EXHAUSTED", "Out of memory"),
    "tensorflow": ("OOM when allocating", "RESOURCE_EXHAUSTED", "ResourceExhausted"),
}


@contextlib.contextmanager
def memory_errors_explained():
    """A context that adds a note to errors of memory, which stay what they are."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            error.add_note(NOTE)
        raise


def is_out_of_memory(error):
    """Whether an error says that memory ran out, of the device or of the process."""
    if isinstance(error, MemoryError):
        return True
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        if isinstance(error, tf.errors.ResourceExhaustedError):
            return True
    # Those of PyTorch and JAX are errors of this class, too.
    is_runtime = isinstance(error, RuntimeError)
    return is_runtime and any(text in str(error) for text in _MESSAGES[backend])
