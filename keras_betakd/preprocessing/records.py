"""Ids and texts of raw records, and ids as bytes for compiled steps."""

import numpy as np
from keras import ops


def to_numpy(batch):
    """`(x, y, sample_weight)`, with a flat dict x, as NumPy arrays."""
    x, y, weight = batch
    x = {key: ops.convert_to_numpy(value) for key, value in x.items()}
    return x, ops.convert_to_numpy(y), ops.convert_to_numpy(weight).astype("float32")


def as_text(value):
    """A string, bytes, or a scalar array of either as a Python string."""
    value = value.item() if hasattr(value, "item") else value
    if hasattr(value, "numpy"):
        value = value.numpy()
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def as_turns(value):
    """A prompt or response as a list of strings, one per turn of a conversation."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [
        as_text(v) for v in (value if isinstance(value, (list, tuple)) else [value])
    ]


class PlacedRecords(dict):
    """Raw records that know their places in the data, for errors.

    Args:
        records: dict of raw records.
        places: for each record a string such as "number 17 of the data".
    """

    def __init__(self, records, places):
        super().__init__(records)
        self.places = list(places)


def record_ids(records, size):
    """Strings that name the records in errors: the id and the place, what is known."""
    places = getattr(records, "places", None)
    if records.get("ids") is None:
        return places or [f"number {i} of the batch" for i in range(size)]
    names = [f"'{as_text(i)}'" for i in records["ids"]]
    if places is None:
        return names
    return [f"{name} ({place})" for name, place in zip(names, places, strict=True)]


# The number of bytes of an id that are kept for messages.
ID_BYTES = 64


def encoded_ids(ids):
    """A list of B ids as UTF-8 bytes (B, 64), which compiled steps can take.

    Longer ids are cut, shorter ones padded with zeros.
    """
    rows = np.zeros((len(ids), ID_BYTES), dtype="uint8")
    for row, name in zip(rows, ids, strict=True):
        found = np.frombuffer(name.encode()[:ID_BYTES], dtype="uint8")
        row[: len(found)] = found
    return rows
