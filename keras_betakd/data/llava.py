"""Makes batches of conversations about images, in LLaVA's training format.

    [{"id": "7", "image": "coco/7.jpg", "conversations": [
        {"from": "human", "value": "<image>\\nWhat is it?"},
        {"from": "gpt", "value": "A cat."}]}, ...]

`load_llava` reads this format to records; `LlavaDataset` makes batches of them.
"""

from collections.abc import Sequence

import numpy as np

from keras_betakd.data.batches import EpochDataset, expect_positive
from keras_betakd.data.columns import record_columns
from keras_betakd.data.llava_records import LlavaRecord, read_images

MAX_STEPS_SORTED = 50
"""The most batches whose records are sorted together by length; the rest is random."""

MIN_PARTS_SORTED = 4
"""The fewest parts of an epoch, each sorted by itself, so that epochs differ."""


class LlavaDataset(EpochDataset):
    """Batches of LLaVA records, in a form that the preprocessing of any model takes.

    A batch is a dict of lists with one entry for each record: `"ids"`; `"prompts"`
    and `"responses"`, each a string, or for a conversation of several turns a list
    of strings; and `"images"`, a list of `(H, W, 3)` uint8 arrays, empty for text
    alone. If any record has a system's text, `"system"` holds it, or `None`. Images
    keep their own size and are read when the batch is made; each model's preprocessing
    resizes them and replaces `IMAGE_MARK`. An image that is missing or damaged by then
    raises an error with the record's id.

    The batches of an epoch depend only on `seed` and the number of the epoch, so they
    are the same with any number of workers, threads or processes. Process workers
    should be spawned, as a fork of a process that runs JAX or TensorFlow may hang:
    call `multiprocessing.set_start_method("spawn")` first.

    For training in several processes, `keras_betakd.ProcessShare` gives each its share
    of every batch; `batch_size` then counts the records of all processes. The shares of
    a batch hold equally many records, with `group_by_modality` of one modality, and
    each process reads only the images of its share.

    Args:
        records: `LlavaRecord`s, for example from `load_llava`.
        batch_size: Records in a batch; the last may be smaller.
        shuffle: Whether to shuffle the records at the start of each epoch.
        seed: Seed of the shuffling, 0 or more.
        group_by_modality: Whether each batch holds either records with images or
            records of text alone, and texts of similar length, so that little is
            padded. The last batch of each kind may be smaller. With `shuffle` the
            batches of both kinds are mixed; without it, those with images come first.
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
        self._has_system = any(r.system is not None for r in self.records)
        self._has_images = np.array([bool(r.images) for r in self.records])
        self._lengths = np.array([_length(record) for record in self.records])
        self.start_epoch(0)

    def cut(self, generator: np.random.Generator) -> list[np.ndarray]:
        """Returns the batches of an epoch; `EpochDataset` calls this."""
        pools = self._pools_of(self.drawn())
        batches = [b for pool in pools for b in self._batches_of(pool, generator)]
        if self.group_by_modality and self.shuffle:
            batches = [batches[i] for i in generator.permutation(len(batches))]
        return batches

    def batch(self, records: list[LlavaRecord]) -> dict:
        """Returns the batch of the given records; `EpochDataset` calls this."""
        batch = record_columns(records)
        batch["images"] = [read_images(record) for record in records]
        if self._has_system:
            batch["system"] = [record.system for record in records]
        return batch

    def drawn(self) -> np.ndarray:
        """Returns the indices of the records of the present epoch; here all of them."""
        return np.arange(len(self.records))

    def _pools_of(self, drawn):
        """The indices of the records that may share a batch, for each modality."""
        if not self.group_by_modality:
            return [drawn]
        has_images = self._has_images[drawn]
        return [pool for pool in (drawn[has_images], drawn[~has_images]) if len(pool)]

    def _batches_of(self, pool, generator):
        """The batches of the records of one pool."""
        order = generator.permutation(pool) if self.shuffle else pool
        if self.group_by_modality:
            order = self._sort_by_length(order)
        starts = range(0, len(order), self.batch_size)
        return [order[start : start + self.batch_size] for start in starts]

    def _sort_by_length(self, order):
        """Sorts each of several consecutive parts of the order by length."""
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
    return sum(map(len, (*record.prompts, *record.responses)))
