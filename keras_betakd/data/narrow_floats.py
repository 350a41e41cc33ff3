"""Numbers of 32 and 16 bits by the fewest digits: 0.1, not 0.10000000149011612.

As a Python float, which has 64 bits, such a number has digits that nobody wrote, and
as an answer all of them would be trained.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

_NARROW = ("float32", "float16")


def shortened(rows: Iterable, kinds: Mapping[str, Any]) -> Iterator:
    """Returns rows whose numbers of few bits have the fewest digits.

    Args:
        rows: Dicts, or what stands in the place of one.
        kinds: The NumPy type of each column, or of what is in its lists.

    Example:

    >>> rows = [{"a": 0.10000000149011612, "b": [0.5]}]
    >>> list(shortened(rows, {"a": "float32", "b": "float64"}))
    [{'a': 0.1, 'b': [0.5]}]
    """
    narrow = {name: kind for name, kind in kinds.items() if kind in _NARROW}
    if not narrow:
        return iter(rows)
    return (_with_fewest_digits(row, narrow) for row in rows)


def _with_fewest_digits(row, narrow):
    if not isinstance(row, Mapping):
        return row
    changed = {n: fewest_digits(row[n], k) for n, k in narrow.items() if n in row}
    return {**row, **changed}


def fewest_digits(value: Any, kind: str) -> Any:
    """Returns a number by the fewest digits that tell it apart among those of its type.

    Args:
        value: A number, a list of them, or something else, which is not changed.
        kind: The NumPy type that it had, "float32" or "float16".

    Example:

    >>> fewest_digits(0.10000000149011612, "float32")
    0.1
    """
    if isinstance(value, (list, tuple)):
        return [fewest_digits(one, kind) for one in value]
    if not isinstance(value, (float, np.floating)):
        return value
    return float(str(np.dtype(kind).type(value)))


def feature_types(table: Any) -> dict[str, str]:
    """The NumPy types of a Hugging Face dataset's columns, or of what their lists hold.

    Example:

    >>> feature_types([])
    {}
    """
    features = getattr(table, "features", None) or {}
    return {column: _type_of(feature) for column, feature in features.items()}


def _type_of(feature):
    while hasattr(feature, "feature"):
        feature = feature.feature
    return getattr(feature, "dtype", None)
