"""Batches of raw records of which the answers are made here, not given."""

import itertools

import numpy as np

from keras_betakd.data.batches import EpochDataset, EpochParts
from keras_betakd.preprocessing.adapters import raw_records, take_records
from keras_betakd.preprocessing.records import PlacedRecords


def read_batch(dataset, index):
    """The batch of a data set, as raw records.

    Args:
        dataset: a `PyDataset`.
        index: the number of the batch.

    Raises:
        ValueError: it is no batch of raw records.
    """
    batch = dataset[index]
    records = None if isinstance(batch, tuple) else raw_records(batch)
    if records is None:
        raise ValueError(
            "Prompts are answered from batches of raw records. Received: a batch of "
            f"type {type(batch).__name__}"
        )
    return records


def size_of(dataset, index):
    """The number of records in a batch; it is read where nothing else tells it."""
    if hasattr(dataset, "size_of"):
        return dataset.size_of(index)
    return len(read_batch(dataset, index)["prompts"])


def with_columns(batch, columns):
    """Raw records with other columns, and with their places if they know them."""
    found = {**batch, **columns}
    places = getattr(batch, "places", None)
    return found if places is None else PlacedRecords(found, places)


def column_of(batch, key):
    """A column of raw records as a list, of `None` where there is no such column."""
    values = batch.get(key)
    return [None] * len(batch["prompts"]) if values is None else list(values)


# What a model reads of a record.
_READ = ("ids", "prompts", "responses", "response_tokens", "images", "system")


def grouped_records(parts, size):
    """Yields raw records in groups of one size, the last one of what is left.

    Args:
        parts: pairs of a list of keys and the `PlacedRecords` that they stand for; read
            as needed.
        size: the number of records of a group.

    Yields:
        Pairs of the same form, without weights.
    """
    singles = (
        (key, take_records(records, [row]))
        for keys, records in parts
        for row, key in enumerate(keys)
    )
    while group := list(itertools.islice(singles, size)):
        keys, records = zip(*group, strict=True)
        columns = {key: [column_of(r, key)[0] for r in records] for key in _READ}
        # A missing response is an error that names its record.
        kept = {k for k in columns if k in records[0]} & {"prompts", "responses"}
        found = {
            k: v
            for k, v in columns.items()
            if k in kept or any(x is not None for x in v)
        }
        yield list(keys), PlacedRecords(found, [r.places[0] for r in records])


def unanswered(batch):
    """Which of a batch's records have no answer to their last turn: list of bools.

    A conversation lacks it where it has one response fewer than prompts, or `None` for
    the last one.
    """
    columns = (column_of(batch, key) for key in ("responses", "response_tokens"))
    rows = zip(batch["prompts"], *columns, strict=True)
    return [ids is None and _lacks_answer(*row) for *row, ids in rows]


def _lacks_answer(prompt, response):
    if response is None or isinstance(response, (str, bytes)):
        return response is None
    if not isinstance(response, (list, tuple, np.ndarray)) or not np.size(response):
        return False  # what is no response is refused where it is trained
    answers = list(response)
    several = isinstance(prompt, (list, tuple, np.ndarray))
    count = len(prompt) if several else 1
    return len(answers) == count - 1 or (len(answers) == count and answers[-1] is None)


def record_parts(dataset, batch_size):
    """Yields all records of a data set once, always divided in the same way.

    Those of an `EpochDataset` come in the order of its `records`, whatever its epochs
    hold; others in their own batches, those of epoch 0.

    Args:
        dataset: a `PyDataset` with a known number of batches.
        batch_size: the most records of a part.

    Yields:
        Dicts of raw records.
    """
    dataset = dataset.dataset if isinstance(dataset, EpochParts) else dataset
    if isinstance(dataset, EpochDataset):
        records = dataset.records
        for start in range(0, len(records), batch_size):
            yield dataset.batch(list(records[start : start + batch_size]))
        return
    _start_over(dataset)
    for index in range(dataset.num_batches):
        batch = read_batch(dataset, index)
        rows = range(len(batch["prompts"]))
        for start in range(0, len(rows), batch_size):
            yield take_records(batch, rows[start : start + batch_size])
    _start_over(dataset)  # what can be read only in its order is read again


def _start_over(dataset):
    if hasattr(dataset, "start_epoch"):
        dataset.start_epoch(0)
