"""Adapts `PyDataset`, `tf.data`, `DataLoader` or raw records to a `PyDataset`."""

import math

import keras
import numpy as np
from keras import tree

from keras_betakd.data.batches import expect_positive
from keras_betakd.data.columns import is_records, record_columns
from keras_betakd.data.streams import RecordStream
from keras_betakd.preprocessing.iterables import (
    IterableBatches,
    StreamBatches,
    from_data_loader,
    from_tf_dataset,
)
from keras_betakd.preprocessing.records import PlacedRecords, by_position


def as_dataset(x, batch_size, shuffle=False):
    """A `PyDataset` of the batches of `x`, or `None` if `x` is arrays.

    Args:
        x: raw records (a dict of columns, a list of dicts, a Hugging Face table, what a
            loader of `keras_betakd.data` returns, also as a stream), a `PyDataset`, a
            `tf.data.Dataset`, a torch `DataLoader`, a generator or another iterator of
            batches, or arrays.
        batch_size: records per batch of raw records; 32 if `None`.
        shuffle: whether to shuffle raw records in each epoch.

    Raises:
        ValueError: `x` is none of these.
    """
    if isinstance(x, keras.utils.PyDataset):
        return x
    records = raw_records(x)
    size = 32 if batch_size is None else batch_size
    if records is not None:
        return RecordBatches(records, size, shuffle)
    if isinstance(x, RecordStream):
        return StreamBatches(x, size)
    if hasattr(x, "as_numpy_iterator"):  # tf.data.Dataset
        return from_tf_dataset(x)
    if hasattr(x, "batch_sampler"):  # torch.utils.data.DataLoader
        return from_data_loader(x)
    if hasattr(x, "__next__"):
        return IterableBatches(x)
    refusal = _refusal(x)
    if refusal:
        raise ValueError(f"{refusal} (x is of type {type(x)})")
    leaves = tree.flatten(x)
    if leaves and all(hasattr(leaf, "shape") for leaf in leaves):
        return None
    raise ValueError(
        "`x` must be raw records (a dict of lists or arrays, a list of dicts, or a "
        "Hugging Face table, with prompts and responses), arrays, or batches of them: "
        "a `keras.utils.PyDataset`, a `tf.data.Dataset`, a torch `DataLoader` or a "
        f"generator. Received: x of type {type(x)}"
    )


def is_raw_records(x):
    """Whether `x` is a dict of raw records, which a preprocessor turns into arrays."""
    return isinstance(x, dict) and "prompts" in x


def raw_records(x):
    """Raw records as a dict of columns or a table; `None` if `x` is none of them."""
    if is_records(x):
        return record_columns(x)
    if _is_list_of_records(x):
        return _columns(x)
    if is_raw_records(x):
        return by_position(x)
    return x if _is_table(x) else None


def weighted_records(x, sample_weight):
    """`(x, None)`, with the weights of raw records under their key.

    Args:
        x, sample_weight: as for `fit`; returned as they are if `x` is no raw records
            or there are no weights.
    """
    records = None if sample_weight is None else raw_records(x)
    if not isinstance(records, dict):
        return x, sample_weight
    if records.get("sample_weight") is not None:
        raise ValueError(
            'These records have a "sample_weight" of their own. Received: the argument '
            "`sample_weight` too"
        )
    return {**records, "sample_weight": sample_weight}, None


def _is_list_of_records(x):
    return isinstance(x, (list, tuple)) and bool(x) and isinstance(x[0], dict)


def _columns(rows):
    """A list of dicts as a dict of lists."""
    keys = set(rows[0])
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or set(row) != keys or "prompts" not in keys:
            found = sorted(map(str, row)) if isinstance(row, dict) else type(row)
            raise ValueError(
                "A list of records must hold dicts that all have the same keys, among "
                'them "prompts" and "responses". Received: record number '
                f"{number} with {found}, the first with {sorted(map(str, keys))}."
                + _loader_of(keys)
            )
    return {key: [row[key] for row in rows] for key in rows[0]}


def _is_table(x):
    """Whether `x` is a Hugging Face `datasets.Dataset` with a column of prompts."""
    return hasattr(x, "__len__") and "prompts" in (_column_names(x) or ())


def _column_names(x):
    """The names of a Hugging Face table's or stream's columns; `None` of others."""
    return getattr(x, "column_names", None) if hasattr(x, "features") else None


def _refusal(x):
    """What to do with data of a kind that is known but not taken; `None` of others."""
    if isinstance(x, dict) and x and all(_column_names(v) for v in x.values()):
        name = next(iter(x))
        return f"These are several tables, by name: pass one, `dataset[{name!r}]`."
    if isinstance(x, dict) and not x:
        return "This dict is empty."
    if isinstance(x, dict) and any(_is_text_column(v) for v in x.values()):
        return (
            'Raw records need "prompts" and "responses" (and "images" for models that '
            f"see). Received: keys={sorted(map(str, x))}." + _loader_of(x)
        )
    if _column_names(x) and hasattr(x, "__len__"):
        return (
            'A table needs the columns "prompts" and "responses" (`rename_columns`). '
            f"Received: columns {list(x.column_names)}." + _loader_of(x.column_names)
        )
    if hasattr(x, "column_names") and hasattr(x, "__iter__"):
        return (
            "A streaming table comes record by record: pass `torch.utils.data."
            "DataLoader(dataset, batch_size=...)`, or `iter(dataset.batch(...))` with "
            "`steps_per_epoch`." + _loader_of(x.column_names or ())
        )
    if hasattr(x, "to_pydict"):  # pyarrow
        return "Pass the columns of the table: `table.to_pydict()`."
    if hasattr(x, "to_dict") and hasattr(x, "columns"):  # pandas
        return 'Pass the columns of a data frame: `frame.to_dict("list")`.'
    if hasattr(x, "__getitem__") and hasattr(x, "__add__") and hasattr(x, "__len__"):
        if not hasattr(x, "shape") and not isinstance(x, (list, tuple, str, bytes)):
            return "Pass a torch data set in a `torch.utils.data.DataLoader`."
    if isinstance(x, (str, bytes)) or hasattr(x, "__fspath__"):
        return "Load a file first, for example by `keras_betakd.data.load_chat`."
    return None


# The first keys that are there say what the records are.
_LOADERS = {
    "load_chat": ("messages", "conversations", "conversation", "texts", "query"),
    "load_vqa": ("question", "questions", "answer", "answers"),
    "load_captions": ("caption", "captions"),
}


def _loader_of(keys):
    """A sentence on the loader for records with these keys; empty if none is known."""
    for name, known in _LOADERS.items():
        if any(key in keys for key in known):
            return f" These are read by `keras_betakd.data.{name}`: `fit({name}(x))`."
    return ""


def _is_text_column(column):
    """Whether it is a list of texts, or of the messages of conversations."""
    if isinstance(column, (str, bytes)) or not hasattr(column, "__len__"):
        return False
    if hasattr(column, "dtype") and hasattr(column.dtype, "kind"):
        return column.dtype.kind in "OSU"
    first = column[0] if isinstance(column, (list, tuple)) and column else None
    return isinstance(first, (str, bytes, list, tuple, dict))


# Records in memory


class RecordBatches(keras.utils.PyDataset):
    """Batches of raw records that are in memory.

    Args:
        records: dict of arrays or lists of one length, or a Hugging Face table, which
            is read batch by batch.
        batch_size: records per batch.
        shuffle: whether to shuffle the records in each epoch. The order depends on the
            state of NumPy's global generator when the data set is made
            (`keras.utils.set_random_seed` makes it repeatable) and on the number of
            the epoch.

    Raises:
        ValueError: `batch_size` is not positive, or the entries differ in length.
    """

    def __init__(self, records, batch_size=32, shuffle=False):
        super().__init__()
        expect_positive("batch_size", batch_size)
        self.records = records
        self.size = _size(records)
        self.batch_size = batch_size
        self.seed = drawn_seed() if shuffle else None
        self.start_epoch(0)

    @property
    def num_batches(self):
        return math.ceil(self.size / self.batch_size)

    def __getitem__(self, index):
        start = index * self.batch_size
        rows = self.order[start : start + self.batch_size]
        found = take_records(self.records, rows)
        if isinstance(found, PlacedRecords):  # a part of other records
            return found
        return PlacedRecords(found, [f"number {row} of the data" for row in rows])

    def start_epoch(self, epoch):
        """Sets the order of the records to that of epoch number `epoch`."""
        self.epoch = epoch
        self.order = np.arange(self.size)
        if self.seed is not None:
            np.random.default_rng((self.seed, epoch)).shuffle(self.order)

    def on_epoch_end(self):
        self.start_epoch(self.epoch + 1)


def drawn_seed():
    """A seed drawn from NumPy's global generator."""
    return int(np.random.randint(2**31))


def _size(records):
    """The number of raw records; raises where the entries differ in length."""
    if _is_table(records):
        return len(records)
    if records.get("prompts") is None:
        raise ValueError('Raw records need "prompts". Received: prompts=None')
    sizes = {
        key: _length(key, value) for key, value in records.items() if value is not None
    }
    if len(set(sizes.values())) > 1:
        raise ValueError(
            "All entries of raw records must have one length. Received: "
            + ", ".join(f'{size} "{key}"' for key, size in sizes.items())
        )
    return sizes["prompts"]


def _length(key, value):
    no_entries = not hasattr(value, "__len__") or getattr(value, "shape", None) == ()
    if isinstance(value, (str, bytes)) or no_entries:
        raise ValueError(
            f'Raw records hold one entry for each record: "{key}" must be a list or '
            f"an array. Received: {value!r:.80} of type {type(value).__name__}"
        )
    return len(value)


def take_records(records, rows):
    """The raw records at `rows`, a sequence of indices."""
    if _is_table(records):
        return dict(records[[int(row) for row in rows]])
    found = {k: v if v is None else [v[i] for i in rows] for k, v in records.items()}
    places = getattr(records, "places", None)
    return found if places is None else PlacedRecords(found, [places[i] for i in rows])


def split_records(records, validation_split):
    """Splits raw records in two dicts: the first part, and the last part.

    Args:
        records: dict of raw records.
        validation_split: the fraction of the records in the last part.

    Raises:
        ValueError: one part would be empty.
    """
    size = _size(records)
    first = size - int(size * validation_split)
    if not 0 < first < size:
        raise ValueError(
            f"`validation_split` leaves a part of the {size} records empty. "
            f"Received: validation_split={validation_split}"
        )
    places = [f"number {row} of the data" for row in range(size)]
    parts = range(first), range(first, size)
    found = [take_records(records, rows) for rows in parts]
    return tuple(
        PlacedRecords(part, [places[row] for row in rows])
        for part, rows in zip(found, parts, strict=True)
    )
