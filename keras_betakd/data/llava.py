"""LLaVA's training format: conversations about pictures, as neutral batches.

    [{"id": "7", "image": "coco/7.jpg", "conversations": [
        {"from": "human", "value": "<image>\\nWhat is it?"},
        {"from": "gpt", "value": "A cat."}]}, ...]

`load_llava` reads it to records, `LlavaDataset` makes batches of them.
"""

from collections.abc import Sequence

import numpy as np

from keras_betakd.data.batches import EpochDataset, expect_positive
from keras_betakd.data.llava_records import LlavaRecord, read_images

MAX_STEPS_SORTED = 50
"""Among how many steps at most texts are sorted by length: few enough for chance."""

MIN_PARTS_SORTED = 4
"""In how many parts at least an epoch is sorted, so that epochs differ."""


class LlavaDataset(EpochDataset):
    """Batches of LLaVA records that belong to no model yet.

    A batch is a dict of lists with one entry for each record: `"ids"`; `"prompts"`
    and `"responses"`, each a string, or for a conversation of several turns a list
    of strings; and `"images"`, a list of `(H, W, 3)` uint8 arrays, empty for text
    alone. Pictures keep their own size and are read when the batch is made; each
    model's preprocessing resizes them and swaps `IMAGE_MARK`. One that turns out to
    be missing or damaged then raises, with the record's id.

    The batches of an epoch depend on `seed` and the epoch's number alone, so they
    are the same with any number of workers, threads or processes. Process workers
    should be spawned, as a fork of a process that runs JAX or TensorFlow may hang:
    call `multiprocessing.set_start_method("spawn")` first.

    For training in several processes, `keras_betakd.ProcessShare` gives each its
    share of every batch. The shares of a batch hold equally many records, of one
    modality with `group_by_modality`, and only a share's own images are read.

    Args:
        records: `LlavaRecord`s, for example from `load_llava`.
        batch_size: Records in a batch; the last may be smaller.
        shuffle: Whether each epoch has an order of its own.
        seed: Seed of that order, 0 or more.
        group_by_modality: Whether a batch holds either records with pictures or
            text alone, in texts of about one length, so that little is padded. The
            last batch of each kind may be smaller. With `shuffle` the steps come
            mixed, without it those with pictures first.
        **kwargs: `workers`, `use_multiprocessing` and `max_queue_size` of
            `keras.utils.PyDataset`.

    Raises:
        ValueError: An argument is out of range, or there are no records.
        TypeError: An entry of `records` is no `LlavaRecord`.

    Example:

    >>> dataset = LlavaDataset([LlavaRecord("7", ["Hi"], ["Hello!"])], batch_size=8)
    >>> dataset[0]
    {'ids': ['7'], 'prompts': ['Hi'], 'responses': ['Hello!'], 'images': [[]]}
    """

    def __init__(
        self,
        records: Sequence[LlavaRecord],
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        group_by_modality: bool = False,
        **kwargs,
    ):
        super().__init__(records, seed, **kwargs)
        _check_records(self.records)
        expect_positive("batch_size", batch_size)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.group_by_modality = group_by_modality
        self._lengths = np.array([_length(record) for record in self.records])
        self._pools = self._make_pools()
        self.start_epoch(0)

    def cut(self, generator: np.random.Generator) -> list[np.ndarray]:
        """The batches of an epoch; `EpochDataset` calls this."""
        batches = [b for pool in self._pools for b in self._batches_of(pool, generator)]
        if self.group_by_modality and self.shuffle:
            batches = [batches[i] for i in generator.permutation(len(batches))]
        return batches

    def batch(self, records: list[LlavaRecord]) -> dict:
        """One batch of these records; `EpochDataset` calls this."""
        return {
            "ids": [record.id for record in records],
            "prompts": [_turns(record.prompts) for record in records],
            "responses": [_turns(record.responses) for record in records],
            "images": [read_images(record) for record in records],
        }

    def _make_pools(self):
        """The indices of records that may share a batch."""
        if not self.group_by_modality:
            return [np.arange(len(self.records))]
        has_images = np.array([bool(record.images) for record in self.records])
        pools = np.flatnonzero(has_images), np.flatnonzero(~has_images)
        return [pool for pool in pools if len(pool)]

    def _batches_of(self, pool, generator):
        """The batches of the records of one pool."""
        order = generator.permutation(pool) if self.shuffle else pool
        if self.group_by_modality:
            order = self._sort_by_length(order)
        starts = range(0, len(order), self.batch_size)
        return [order[start : start + self.batch_size] for start in starts]

    def _sort_by_length(self, order):
        """Sorts by length, but each part of the order by itself."""
        size = self.batch_size
        steps = len(order) // size // MIN_PARTS_SORTED
        part = np.arange(len(order)) // (size * np.clip(steps, 1, MAX_STEPS_SORTED))
        return order[np.lexsort((self._lengths[order], part))]


def _check_records(records):
    if not records:
        raise ValueError(
            "There must be at least one record. Received: none; were all skipped, as "
            "none can be used?"
        )
    for record in records:
        if not isinstance(record, LlavaRecord):
            raise TypeError(
                "`records` must hold `LlavaRecord`s; `load_llava` makes them of dicts "
                f"or a file. Received: {type(record).__name__}"
            )


def _length(record):
    return sum(map(len, record.prompts + record.responses))


def _turns(texts):
    return texts[0] if len(texts) == 1 else list(texts)
