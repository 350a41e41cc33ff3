"""Marks for tests that would say the same on every backend, or take long there."""

import pytest


def kept(values, *everywhere):
    """Parameters of a test: on JAX and TensorFlow it runs with some of them alone.

    Args:
        values: all parameters; tuples where a test takes several.
        *everywhere: those of them for JAX and TensorFlow, too.
    """
    unknown = [x for x in everywhere if x not in values]
    if unknown:
        raise ValueError(f"Not among the parameters {list(values)}: {unknown}")
    return [
        pytest.param(
            *(x if isinstance(x, tuple) else (x,)),
            marks=() if x in everywhere else pytest.mark.pytorch,
        )
        for x in values
    ]
