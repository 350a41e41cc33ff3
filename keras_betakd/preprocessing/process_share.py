"""`ProcessShare`: one process's share of each batch."""

import copy
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_betakd.data.batches import EpochDataset, EpochParts, expect_positive
from keras_betakd.distribution.replicas import process_position
from keras_betakd.preprocessing.adapters import as_dataset, take_records
from keras_betakd.preprocessing.iterables import has_batch, is_endless


class ProcessShare(keras.utils.PyDataset):
    """This process's share of each batch, for training in several processes.

    For PyTorch under `torchrun`, where each process is given its own data, and for
    several JAX processes with `keras.distribution`. Every process makes the same data
    set, with global batches of all processes, and computes its rows of each: process 0
    the first ones, and so on, the same number in each process. Where the rows do not
    divide evenly, the last shares are padded with copies of the last row that have
    weight 0, so the losses, gradients and betas are those of one process on the global
    batch.

    Of the project's own data sets (`ScienceQADataset`, `LlavaDataset`, `EpochParts` of
    them) only the rows of the share are read from disk, of others the whole batch.

    Args:
        dataset: batches of raw records or `(x, y, sample_weight)`: a `PyDataset`, a
            `tf.data.Dataset` or a torch `DataLoader`; or a dict of raw records. Must be
            the same, in the same order, in every process: seed its shuffling.
        batch_size: records per global batch, for a dict of raw records; 32 by default.
        index, count: which share of how many. By default this process's: its rank in
            `torch.distributed`, or its part of the data in `keras.distribution`; (0, 1)
            in a single process, so that the same script runs everywhere.

    Raises:
        ValueError: `index` is not in 0..count - 1, or only one of the two is given;
            or `dataset` does not come in batches.

    Example:

    >>> import numpy as np
    >>> from keras_betakd import ProcessShare
    >>> records = {"prompts": ["a", "b", "c"], "responses": ["x", "y", "z"]}
    >>> batch = ProcessShare(records, batch_size=4, index=1, count=2)[0]
    >>> batch["prompts"], batch["sample_weight"].tolist()
    (['c', 'c'], [1.0, 0.0])
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = None,
        index: int | None = None,
        count: int | None = None,
    ):
        if (index is None) != (count is None):
            raise ValueError(
                "`index` and `count` go together. Received: "
                f"index={index}, count={count}"
            )
        if index is None or count is None:
            index, count = process_position()
        if not 0 <= index < count:
            raise ValueError(
                f"`index` must lie in 0..{count - 1}. Received: index={index}"
            )
        if batch_size is not None:
            expect_positive("batch_size", batch_size)
        self.dataset = as_dataset(dataset, batch_size)
        if self.dataset is None:
            raise ValueError(
                "`dataset` must come in batches (`PyDataset`, `tf.data.Dataset`, "
                "`DataLoader`) or be a dict of raw records. Received: arrays"
            )
        super().__init__(
            workers=self.dataset.workers,
            use_multiprocessing=self.dataset.use_multiprocessing,
            max_queue_size=self.dataset.max_queue_size,
        )
        self.index = index
        self.count = count

    @property
    def num_batches(self):
        return self.dataset.num_batches

    @property
    def endless(self):
        return is_endless(self.dataset)

    def has_batch(self, index):
        return has_batch(self.dataset, index)

    @property
    def epoch(self):
        return self.dataset.epoch

    def start_epoch(self, epoch):
        self.dataset.start_epoch(epoch)

    def __getitem__(self, index):
        if isinstance(self.dataset, (EpochDataset, EpochParts)):
            rows, real = self._rows(self.dataset.size_of(index))
            return weighted(self.dataset.part(index, rows), real)
        batch = self.dataset[index]
        if isinstance(batch, dict):
            rows, real = self._rows(len(batch["prompts"]))
            return weighted(take_records(batch, rows), real)
        rows, real = self._rows(len(tree.flatten(batch)[0]))
        taken = tree.map_structure(lambda value: np.asarray(value)[rows], batch)
        x, y, weight = (*taken, None, None)[:3]
        return x, y, _times(np.ones(len(rows)) if weight is None else weight, real)

    def _rows(self, size):
        """The rows of this share, and whether each is a row of the batch, not a copy.

        Args:
            size: the number of rows of the global batch.
        """
        each = -(-size // self.count)
        rows = self.index * each + np.arange(each)
        return np.minimum(rows, size - 1), rows < size

    def on_epoch_begin(self):
        self.dataset.on_epoch_begin()

    def on_epoch_end(self):
        self.dataset.on_epoch_end()


def weighted(records, real):
    """Raw records with their sample weights, 0 where `real` is false.

    Args:
        records: dict of raw records.
        real: bool array, one for each record.
    """
    weight = records.get("sample_weight")
    weight = np.ones(len(real)) if weight is None else weight
    weighted = copy.copy(records)  # with the places of the records
    weighted["sample_weight"] = _times(weight, real)
    return weighted


def _times(weight, real):
    """Weights (B, ...), 0 where `real`, (B,) bool, is false."""
    weight = np.asarray(weight, "float32")
    return weight * real.reshape((-1,) + (1,) * (weight.ndim - 1))
