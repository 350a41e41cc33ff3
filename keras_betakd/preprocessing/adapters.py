"""Adapts `PyDataset`, `tf.data`, `DataLoader` or raw records to a `PyDataset`."""

import math

import keras
import numpy as np
from keras import tree


def as_dataset(x, batch_size, shuffle=False):
    """A `PyDataset` of the batches of `x`, or `None` if `x` is arrays.

    Args:
        x: a dict of raw records, a `PyDataset`, a `tf.data.Dataset`, a torch
            `DataLoader`, or arrays.
        batch_size: records per batch of a dict of raw records; 32 if `None`.
        shuffle: whether to shuffle a dict of raw records in each epoch.

    Raises:
        ValueError: `x` is none of these.
    """
    if isinstance(x, keras.utils.PyDataset):
        return x
    if is_raw_records(x):
        return RecordBatches(x, batch_size or 32, shuffle)
    if hasattr(x, "as_numpy_iterator"):  # tf.data.Dataset
        return _from_tf_dataset(x)
    if hasattr(x, "batch_sampler"):  # torch.utils.data.DataLoader
        return IterableBatches(_Converted(x, _torch_to_numpy), len(x))
    leaves = tree.flatten(x)
    if leaves and all(hasattr(leaf, "shape") for leaf in leaves):
        return None
    raise ValueError(
        "`x` must be raw records (a dict of lists or arrays), arrays, a "
        "`keras.utils.PyDataset`, a `tf.data.Dataset` or a torch `DataLoader`. A "
        "generator cannot be started again for a second epoch. Received: "
        f"x of type {type(x)}"
    )


def is_raw_records(x):
    """Whether `x` is a dict of raw records, which a preprocessor turns into arrays."""
    return isinstance(x, dict) and "prompts" in x


# Records in memory


class RecordBatches(keras.utils.PyDataset):
    """Batches of raw records that are in memory.

    Args:
        records: dict of arrays or lists of one length.
        batch_size: records per batch.
        shuffle: whether to shuffle the records in each epoch. The order depends on the
            state of NumPy's global generator when the data set is made
            (`keras.utils.set_random_seed` makes it repeatable) and on the number of
            the epoch.

    Raises:
        ValueError: the entries differ in length.
    """

    def __init__(self, records, batch_size=32, shuffle=False):
        super().__init__()
        self.records = records
        self.size = len(records["prompts"])
        self.batch_size = batch_size
        self.seed = drawn_seed() if shuffle else None
        self.start_epoch(0)
        for key, values in records.items():
            if values is not None and len(values) != self.size:
                raise ValueError(
                    "All entries of raw records must have one length. Received: "
                    f'{self.size} "prompts", {len(values)} "{key}"'
                )

    @property
    def num_batches(self):
        return math.ceil(self.size / self.batch_size)

    def __getitem__(self, index):
        start = index * self.batch_size
        return take_records(self.records, self.order[start : start + self.batch_size])

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


def take_records(records, rows):
    """The raw records at `rows`, a sequence of indices."""
    return {k: v if v is None else [v[i] for i in rows] for k, v in records.items()}


def split_records(records, validation_split):
    """Splits raw records in two dicts: the first part, and the last part.

    Args:
        records: dict of raw records.
        validation_split: the fraction of the records in the last part.

    Raises:
        ValueError: one part would be empty.
    """
    size = len(records["prompts"])
    first = size - int(size * validation_split)
    if not 0 < first < size:
        raise ValueError(
            f"`validation_split` leaves a part of the {size} records empty. "
            f"Received: validation_split={validation_split}"
        )
    rows = np.arange(size)
    return take_records(records, rows[:first]), take_records(records, rows[first:])


# Batches of tf.data and PyTorch


class IterableBatches(keras.utils.PyDataset):
    """Batches of an iterable that can be iterated over repeatedly, in its own order.

    Args:
        iterable: the batches.
        num_batches: how many there are, `None` if infinitely many.
    """

    def __init__(self, iterable, num_batches):
        super().__init__()
        self.iterable = iterable
        self._num_batches = num_batches
        self._iterator = None

    @property
    def num_batches(self):
        return self._num_batches

    def __getitem__(self, index):
        if self._iterator is None:
            self._iterator = iter(self.iterable)
        try:
            return next(self._iterator)
        except StopIteration:
            self._iterator = iter(self.iterable)
            return next(self._iterator)


class _Converted:
    """The batches of an iterable with `convert` applied to every leaf."""

    def __init__(self, iterable, convert):
        self.iterable = iterable
        self.convert = convert

    def __iter__(self):
        for batch in self.iterable:
            yield tree.map_structure(self.convert, batch)


def _from_tf_dataset(dataset):
    count = int(dataset.cardinality())
    if count == -2:  # unknown: a filter or a generator is in the pipeline
        count = sum(1 for _ in dataset)
    batches = _Converted(dataset, _tf_to_numpy)
    return IterableBatches(batches, None if count == -1 else count)


def _tf_to_numpy(value):
    if hasattr(value, "to_list"):  # tf.RaggedTensor: rows of different length
        return [[image.numpy() for image in row] for row in value]
    return value.numpy()


def _torch_to_numpy(value):
    return value.detach().cpu().numpy() if hasattr(value, "detach") else value
