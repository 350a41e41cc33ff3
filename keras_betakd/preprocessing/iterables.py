"""Batches of tf.data, PyTorch and generators, which can only be read in their order."""

import itertools
import threading
import warnings

import keras
from keras import tree

from keras_betakd.data.batches import expect_positive
from keras_betakd.data.columns import record_columns
from keras_betakd.preprocessing.records import PlacedRecords


class IterableBatches(keras.utils.PyDataset):
    """Batches of an iterable, read one after the other as they are needed.

    Keras looks at the first batches of a data set before it trains, at more of them on
    some backends than on others. So all batches that were read are kept until the first
    pass is begun by `start_epoch`, and from then on only those that are still to come:
    whoever begins a pass gets its first batch first.

    Args:
        iterable: the batches. An iterator has one pass only.
        num_batches: how many there are in a pass; `None` if unknown.
        endless: whether they never end.
        convert: function that is applied to every leaf of a batch.

    Attributes:
        epoch: the number of the pass that is read.
    """

    def __init__(self, iterable, num_batches=None, endless=False, convert=None):
        super().__init__()
        self.iterable = iterable
        self.endless = endless
        self.convert = convert
        self.epoch = 0
        self._num_batches = num_batches
        self._begun = False
        self._lock = threading.Lock()  # TensorFlow reads ahead in a thread of its own
        self._new_pass()

    def _new_pass(self):
        self._iterator, self._read, self._kept, self._error = None, 0, {}, None

    def _open(self):
        """An iterator of a pass over the data."""
        return iter(self.iterable)

    @property
    def num_batches(self):
        return self._num_batches

    def start_epoch(self, epoch):
        """Begins pass number `epoch` with its first batch."""
        with self._lock:
            if self._begun:
                self._new_pass()
            self._begun = True
            self.epoch = epoch

    def has_batch(self, index):
        """Whether the pass has a batch of this number; those before it are done."""
        with self._lock:
            return self._reads_up_to(index)

    def __getitem__(self, index):
        with self._lock:
            if not self._reads_up_to(index):
                raise IndexError(f"The data ends after {self._read} batches.")
            if index not in self._kept:
                raise IndexError(
                    f"Batch {index} was read before, and this data can only be read "
                    "in its order."
                )
            return self._kept[index]

    def __iter__(self):
        index = 0
        while self.has_batch(index):
            yield self[index]
            index += 1

    def _reads_up_to(self, index):
        """Whether there is a batch of this number, after reading the data up to it."""
        if self._num_batches is not None and index >= self._num_batches:
            return False
        if self._iterator is None:
            self._iterator = self._open()
        while self._read <= index:
            try:
                batch = self._next()
            except StopIteration:
                return self._ends()
            self._kept[self._read] = batch
            self._read += 1
            self._forget(index)
        self._forget(index)
        return True

    def _next(self):
        """The next batch; an error once raised is raised again.

        A generator ends with its error: whoever reads on would take the data to end
        there, and what was read ahead would hide it.
        """
        if self._error is not None:
            raise self._error
        try:
            batch = next(self._iterator)
            if self.convert is not None:
                batch = tree.map_structure(self.convert, batch)
        except StopIteration:
            raise
        except Exception as error:
            self._error = error
            raise
        return batch

    def _forget(self, index):
        if self._begun:
            self._kept = {i: x for i, x in self._kept.items() if i >= index}

    def _ends(self):
        if self._num_batches is not None:
            warnings.warn(
                f"The data has the length {self._num_batches}, but ended after "
                f"{self._read} batches.",
                stacklevel=2,
            )
            self._num_batches = None  # it does not know its length: say so once
        return False


class StreamBatches(IterableBatches):
    """Batches of raw records out of a stream, whose order each pass sets by its number.

    Args:
        stream: a `RecordStream`.
        batch_size: records per batch.
    """

    def __init__(self, stream, batch_size):
        expect_positive("batch_size", batch_size)
        self.batch_size = batch_size
        super().__init__(stream)

    def start_epoch(self, epoch):
        with self._lock:
            # What was looked at is of the pass before, in the order of that one.
            if not self._begun and epoch != self.epoch and not self.iterable.is_once:
                self._new_pass()
        super().start_epoch(epoch)

    def _open(self):
        records = iter(self.iterable.records(self.epoch))
        first = 0
        while taken := list(itertools.islice(records, self.batch_size)):
            places = [f"number {first + i} of the pass" for i in range(len(taken))]
            first += len(taken)
            yield PlacedRecords(record_columns(taken), places)


def has_batch(dataset, index):
    """Whether a `PyDataset` has a batch of this number in its current epoch."""
    if hasattr(dataset, "has_batch"):
        return dataset.has_batch(index)
    return dataset.num_batches is None or index < dataset.num_batches


def is_endless(dataset):
    """Whether a `PyDataset` never ends."""
    unknown = dataset.num_batches is None
    return getattr(dataset, "endless", unknown)


def begin(dataset):
    """Begins the present epoch of a `PyDataset`, if it has epochs."""
    if hasattr(dataset, "epoch"):
        dataset.start_epoch(dataset.epoch)


def from_tf_dataset(dataset):
    """The batches of a `tf.data.Dataset`; it is not read to be counted."""
    count = int(dataset.cardinality())  # -1: endless, -2: unknown
    return IterableBatches(dataset, count if count >= 0 else None, count == -1, _numpy)


def from_data_loader(loader):
    """The batches of a torch `DataLoader`; one of a stream has no length."""
    try:
        count = len(loader)
    except TypeError:
        count = None
    return IterableBatches(loader, count, convert=_without_torch)


def _numpy(value):
    if hasattr(value, "to_list"):  # tf.RaggedTensor: rows of different length
        return [[image.numpy() for image in row] for row in value]
    return value.numpy()


def _without_torch(value):
    return value.detach().cpu().numpy() if hasattr(value, "detach") else value
