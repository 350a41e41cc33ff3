"""`PyDataset`, `tf.data`, `DataLoader` or records, as batches of raw records."""

import math

import keras
import numpy as np
from keras import tree


def is_raw_records(x):
    """Whether x is a dict of raw records, for a preprocessor to turn into tensors."""
    return isinstance(x, dict) and "prompts" in x


class RecordBatches(keras.utils.PyDataset):
    """Batches of a dict of arrays or lists, all of one length.

    Args:
        records: dict of arrays or lists.
        batch_size: how many records a batch.
        shuffle: whether to deal the records anew each epoch, in an order that rests on
            NumPy's global generator now (`keras.utils.set_random_seed` makes it
            repeatable) and on the epoch's number.
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
        """Deals the records of the epoch of this number."""
        self.epoch = epoch
        self.order = np.arange(self.size)
        if self.seed is not None:
            np.random.default_rng((self.seed, epoch)).shuffle(self.order)

    def on_epoch_end(self):
        self.start_epoch(self.epoch + 1)


def drawn_seed():
    return int(np.random.randint(2**31))


class IterableBatches(keras.utils.PyDataset):
    """Batches of any iterable that can be started again, in its own order.

    Args:
        iterable: a `torch` `DataLoader` or a `tf.data.Dataset`.
        num_batches: how many there are, `None` when endless.
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


def take_records(records, rows):
    """The rows (indices) of a dict of raw records."""
    return {k: v if v is None else [v[i] for i in rows] for k, v in records.items()}


def split_records(records, validation_split):
    """Two dicts of raw records: the first part, and the last `validation_split`."""
    size = len(records["prompts"])
    first = size - int(size * validation_split)
    if not 0 < first < size:
        raise ValueError(
            f"`validation_split` leaves a part of the {size} records empty. "
            f"Received: validation_split={validation_split}"
        )
    rows = np.arange(size)
    return take_records(records, rows[:first]), take_records(records, rows[first:])


def as_dataset(x, batch_size, shuffle=False):
    """A `PyDataset` of the batches of x, or `None` if x is arrays already."""
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


def _from_tf_dataset(dataset):
    count = int(dataset.cardinality())
    if count == -2:  # unknown: a filter or a generator is in the pipeline
        count = sum(1 for _ in dataset)
    batches = _Converted(dataset, _tf_to_numpy)
    return IterableBatches(batches, None if count == -1 else count)


class _Converted:
    """The batches of an iterable, every leaf converted; can be started again."""

    def __init__(self, iterable, convert):
        self.iterable = iterable
        self.convert = convert

    def __iter__(self):
        for batch in self.iterable:
            yield tree.map_structure(self.convert, batch)


def _tf_to_numpy(value):
    if hasattr(value, "to_list"):  # tf.RaggedTensor: rows of different length
        return [[image.numpy() for image in row] for row in value]
    return value.numpy()


def _torch_to_numpy(value):
    return value.detach().cpu().numpy() if hasattr(value, "detach") else value
