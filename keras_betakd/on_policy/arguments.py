"""Checks the arguments of what lets a model answer prompts."""

import math
import numbers

from keras_betakd.data.batches import expect_positive


def expect_sampling(temperature, top_k, top_p):
    """Raises a `ValueError` unless tokens can be drawn so; `None` cuts nothing.

    Example:

    >>> expect_sampling(temperature=1.0, top_k=None, top_p=0.9)
    """
    expect_counts(top_k=top_k)
    _expect_within("temperature", temperature, 0, math.inf)
    if top_p is not None:
        _expect_within("top_p", top_p, 0, 1)


def expect_seed(seed):
    """Raises a `ValueError` unless a seed is an integer.

    Example:

    >>> expect_seed(0)
    """
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral):
        raise ValueError(f"`seed` must be an integer. Received: seed={seed!r}")


def expect_counts(**counts):
    """Raises a `ValueError` for a count that is no positive integer and not `None`."""
    for name, value in counts.items():
        if value is not None:
            expect_positive(name, value)


def _expect_within(name, value, least, most):
    """Raises a `ValueError` unless a number is above `least` and at most `most`."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (is_number and least < value <= most and value < math.inf):
        raise ValueError(
            f"`{name}` must be a finite number above {least}"
            + (f", at most {most}" if most < math.inf else "")
            + f". Received: {name}={value!r}"
        )
