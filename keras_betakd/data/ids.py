"""Ids of records, unique among the records of a source."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np


def with_unique_ids(items: Iterable, key: str | None) -> Iterator[tuple[str, Any]]:
    """Pairs each item with an id that is unique among the items.

    Args:
        items: Mappings with their ids, strings or integers, under `key`. A mapping
            without id gets its index as id. An item that is no mapping, or whose id is
            of another type, cannot become a record: it gets its index, too, but does
            not take that id from another item.
        key: The key of the ids; `None` to use the index of every item.

    Returns:
        The pairs. The second item with the id "x" gets "x#2", and so on.

    Example:

    >>> [name for name, _ in with_unique_ids([{"id": 7}, {}, {"id": "7"}], "id")]
    ['7', '1', '7#2']
    """
    counts: dict[str, int] = {}
    for index, item in enumerate(items):
        is_mapping = isinstance(item, Mapping)
        own_id = item.get(key) if is_mapping and key is not None else None
        if not is_mapping or not is_id_or_none(own_id):
            yield str(index), item
            continue
        own_id = unique = str(index if own_id is None else own_id)
        while unique in counts:
            counts[own_id] += 1
            unique = f"{own_id}#{counts[own_id]}"
        counts[unique] = 1
        yield unique, item


def is_id_or_none(value: Any) -> bool:
    """Whether a value is a string or an integer, as ids are, or `None`."""
    kinds = (str, int, np.integer, type(None))
    return isinstance(value, kinds) and not isinstance(value, bool)
