"""What the backend's compiler can compute on this processor."""

import functools

import keras
from keras import ops


@functools.cache
def compiles_float16():
    """Whether the backend converts float16 to float32.

    XLA does not for a processor with SSE4.2 alone (`--xla_cpu_max_isa=SSE4_2`): it ends
    with "Symbols not found: [ __extendhfsf2 ]", in a program of one conversion too.
    """
    if keras.backend.backend() != "jax":
        return True
    try:
        ops.convert_to_numpy(ops.cast(ops.ones((4,), "float16"), "float32"))
    except RuntimeError:
        return False
    return True
