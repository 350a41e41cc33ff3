"""Records that come as a stream: read once per pass, in order, shuffled in a buffer."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from keras_betakd.data.batches import expect_positive, read_item
from keras_betakd.data.ids import is_id_or_none
from keras_betakd.data.sources import RowStream

NAMED = 1000
"""The most skipped records that a stream names; the others are only counted."""

TRIED = 100
"""So many records at the start, none of which can be used, are no stream of records."""


class RecordStream:
    """Records of a source that is larger than memory, or whose size is unknown.

    Every loader returns one for a stream of rows: a `datasets.IterableDataset`, tar
    files in the form of WebDataset, an iterator. `fit` takes it as it is; give
    `steps_per_epoch`, as in Keras, where an epoch is less than a pass, or where the
    data never ends. Records are read, with their images, as they are needed.

    A record without id is named by its number in the stream. Ids are not made unique:
    that would keep all of them in memory.

    Args:
        rows: The rows.
        read: Returns the record of an id and its row, or raises as for a loader.
        id_column: The key of the ids; `None` for the number in the stream.
        on_error: "raise", or "skip" to leave out the records that cannot be used: one
            warning at the first of them. If none of the first 100 can be used, the
            first one's error is raised.

    Attributes:
        num_skipped: The number of records left out so far.
        skipped: `(id, reason)` of the first 1,000 of them.

    Example:

    >>> from keras_betakd.data import load_vqa
    >>> rows = ({"image": None, "question": "?", "answer": n} for n in range(3))
    >>> [record.responses for record in load_vqa(rows)]
    [('0',), ('1',), ('2',)]
    """

    def __init__(
        self,
        rows: RowStream,
        read: Callable[[str, Any], Any],
        id_column: str | None = None,
        on_error: str = "raise",
    ):
        self.rows = rows
        self.read = read
        self.id_column = id_column
        self.on_error = on_error
        self.buffer_size = 1
        self.seed = 0
        self.num_skipped = 0
        self.skipped: list[tuple[str, str]] = []

    def shuffled(self, buffer_size: int, seed: int = 0) -> "RecordStream":
        """Returns the stream in a random order, each pass in one of its own.

        Each record changes places with one of the next `buffer_size`, which are in
        memory with the images that are not in files of their own. The order follows
        from `seed` and the number of the pass, so a training that is resumed sees the
        order of one that was never interrupted.

        Args:
            buffer_size: The number of records in memory, 1 or more.
            seed: Seed of the order, 0 or more.

        Raises:
            ValueError: `buffer_size` is no positive integer.

        Example:

        ```python
        stream = load_captions("cc3m/*.tar").shuffled(10_000)
        distiller.fit(stream, batch_size=32, steps_per_epoch=1000, epochs=30)
        ```
        """
        expect_positive("buffer_size", buffer_size)
        result = RecordStream(self.rows, self.read, self.id_column, self.on_error)
        result.buffer_size = buffer_size
        result.seed = seed
        return result

    @property
    def is_once(self) -> bool:
        """Whether the stream can be read through only once, as an iterator."""
        return self.rows.is_once

    def __iter__(self) -> Iterator:
        return self.records(0)

    def records(self, epoch: int) -> Iterator:
        """Returns the records of a pass, counted from 0, which sets their order."""
        if self.buffer_size == 1:
            yield from self._in_order()
            return
        generator = np.random.default_rng((self.seed, epoch))
        held = []
        for record in self._in_order():
            held.append(record)
            if len(held) == self.buffer_size:
                yield _take(held, generator)
        while held:
            yield _take(held, generator)

    def _in_order(self):
        count, skipped = 0, 0
        for number, row in enumerate(self.rows):
            record_id = self._id_of(number, row)
            try:
                record = read_item(record_id, row, self.read)
            except (FileNotFoundError, ValueError) as error:
                if self.on_error == "raise":
                    raise
                skipped += 1
                self._skip(record_id, error)
                if skipped == TRIED and not count:
                    raise ValueError(
                        f"None of the first {TRIED} records of the stream can be used. "
                        f"The first is: {self.skipped[0][1]}"
                    ) from error
                continue
            count += 1
            yield record

    def _id_of(self, number, row):
        own_id = None
        if isinstance(row, dict):
            own_id = row.get(self.id_column) if self.id_column else None
            own_id = row.get("__key__") if own_id is None else own_id  # of a tar file
        return str(number if own_id is None or not is_id_or_none(own_id) else own_id)

    def _skip(self, record_id, error):
        self.num_skipped += 1
        if len(self.skipped) < NAMED:
            self.skipped.append((record_id, str(error)))
        if self.num_skipped == 1:
            warnings.warn(
                "Left out a record of a stream that cannot be used, and will leave out "
                "others; `num_skipped` of the stream counts them, `skipped` has the "
                f"reasons. The first is: {error}",
                stacklevel=2,
            )


def _take(held, generator):
    """Takes a random one out of the records in memory."""
    place = int(generator.integers(len(held)))
    held[place], held[-1] = held[-1], held[place]
    return held.pop()
