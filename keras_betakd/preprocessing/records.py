"""Ids and texts of raw records, and ids as bytes for compiled steps."""

import math
import reprlib
from collections.abc import Mapping

import numpy as np
from keras import ops

# What stands in a response that is given by its token ids. Any word does.
PLACEHOLDER = "a"


def to_numpy(batch):
    """`(x, y, sample_weight)`, with a flat dict x, as NumPy arrays."""
    x, y, weight = batch
    x = {key: ops.convert_to_numpy(value) for key, value in x.items()}
    return x, ops.convert_to_numpy(y), ops.convert_to_numpy(weight).astype("float32")


def as_text(value):
    """A string, UTF-8 bytes, or a scalar array of either as a Python string.

    Raises:
        ValueError: it is anything else, as `None` and the NaN of a table are, or it
            cannot be encoded as UTF-8.
    """
    if type(value) is str and value.isascii():
        return value
    value = _plain(value)
    if not isinstance(value, (str, bytes)):
        raise ValueError(
            "must be text, a string or UTF-8 bytes. Received: "
            f"{reprlib.repr(value)} of type {type(value).__name__}"
        )
    try:
        text = value.decode() if isinstance(value, bytes) else str(value)
        text.encode()
    except UnicodeError as error:
        raise ValueError(
            "must be text that can be encoded as UTF-8; bytes that cannot be decoded "
            "and lone surrogates, halves of a character, have to be taken out. "
            f"Received: {reprlib.repr(value)} ({error})"
        ) from error
    return text


def as_id(value):
    """An id, a text or a finite number, as a Python string.

    Raises:
        ValueError: it is anything else, as `None` and the NaN of a table are.
    """
    value = _plain(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        # A whole number beyond the range of floats is none of them.
        if isinstance(value, int) or math.isfinite(value):
            return str(value)
    elif isinstance(value, (str, bytes)):
        return as_text(value)
    raise ValueError(
        "must be a text or a finite number. Received: "
        f"{reprlib.repr(value)} of type {type(value).__name__}"
    )


def as_turns(value):
    """A prompt or response as a list of strings, one per turn of a conversation.

    Raises:
        ValueError: a turn is no text, or there is none. The message names the turn.
    """
    if isinstance(value, str):
        return [as_text(value)]
    if hasattr(value, "numpy"):
        value = value.numpy()
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        return [as_text(value)]
    if not value:
        raise ValueError("must have at least one turn. Received: an empty list")
    return [_turn(number, turn, len(value)) for number, turn in enumerate(value, 1)]


def _turn(number, value, count):
    try:
        return as_text(value)
    except ValueError as error:
        where = f"(turn {number} of {count}) " if count > 1 else ""
        raise ValueError(f"{where}{error}") from error


def turns_by_record(values, names, what):
    """The prompts or responses of records, each as a list of strings.

    Args:
        values: B strings, or lists of strings.
        names: B strings that name the records in errors.
        what: `"prompt"` or `"response"`; errors name it.

    Raises:
        ValueError: one is no text. The message names the record.
    """
    found = []
    for value, name in zip(values, names, strict=True):
        try:
            found.append(as_turns(value))
        except ValueError as error:
            raise ValueError(
                f"Record {name}: its {what} {error}. Correct it, or leave the record "
                "out."
            ) from error
    return found


def tokens_by_record(values, names):
    """The token ids of records' answers, as lists of ints.

    Args:
        values: for each record a sequence of token ids, or `None`.
        names: strings that name the records in errors.

    Raises:
        ValueError: an entry is neither, or it has no token. The message names the
            record.
    """
    found = []
    for value, name in zip(values, names, strict=True):
        if value is not None:
            ids = np.asarray(value)
            if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu":
                raise ValueError(
                    f'Record {name}: its entry of "response_tokens" must be the token '
                    "ids of its answer, a sequence of at least one integer, or `None` "
                    f'for the text in "responses". Received: {value!r:.80}'
                )
            value = [int(i) for i in ids]
        found.append(value)
    return found


def _plain(value):
    """A scalar array or tensor as the Python value that it holds."""
    if hasattr(value, "numpy"):
        value = value.numpy()
    return value.item() if hasattr(value, "item") and np.size(value) == 1 else value


class PlacedRecords(dict):
    """Raw records that know their places in the data, for errors.

    Args:
        records: dict of raw records.
        places: for each record a string such as "number 17 of the data".
    """

    def __init__(self, records, places):
        super().__init__(records)
        self.places = list(places)


def by_position(records):
    """Raw records whose columns are read by position, row by row.

    A column of a data frame is read by its labels otherwise, which are in another order
    once the frame has been shuffled or filtered.

    Args:
        records: dict of columns.

    Raises:
        ValueError: a column is a dict or a set, which have no positions.
    """
    for key, values in records.items():
        if isinstance(values, (Mapping, set, frozenset)):
            raise ValueError(
                f'"{key}" must be a list or an array with one entry for each record. '
                f"Received: {type(values).__name__}"
            )
    if not any(hasattr(values, "iloc") for values in records.values()):
        return records
    found = {k: list(v) if hasattr(v, "iloc") else v for k, v in records.items()}
    places = getattr(records, "places", None)
    return found if places is None else PlacedRecords(found, places)


def record_ids(records, size):
    """Strings that name the records in errors: the id and the place, what is known.

    Raises:
        ValueError: an id is no text and no number.
    """
    places = getattr(records, "places", None)
    known = places or [f"number {i} of the batch" for i in range(size)]
    if records.get("ids") is None:
        return known
    names = [f"'{name}'" for name in id_texts(records["ids"], known)]
    if places is None:
        return names
    return [f"{name} ({place})" for name, place in zip(names, places, strict=True)]


def id_texts(ids, places=None):
    """The ids of records as a list of strings.

    Args:
        ids: the ids.
        places: strings that say where the records are; by number in the batch if
            `None`.

    Raises:
        ValueError: an id is no text and no number. The message says where.
    """
    texts = []
    for number, value in enumerate(ids):
        try:
            texts.append(as_id(value))
        except ValueError as error:
            place = places[number] if places else f"number {number} of the batch"
            raise ValueError(
                f'Record {place}: its id {error}. Give it one, or leave "ids" out.'
            ) from error
    return texts


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
