"""Base classes of record sequences and batched data sets, and checks of records."""

import contextlib
import dataclasses
import numbers
import reprlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np


@dataclasses.dataclass(frozen=True)
class Records(Sequence):
    """The records that a loader returns, as a read-only sequence.

    Args:
        records: The records that can be used.
        skipped: `(id, reason)` of each record left out; empty unless the loader was
            called with `on_error="skip"`.

    Example:

    >>> records = Records(["a", "b"], skipped=[("c", "no image")])
    >>> len(records), records[1], records.skipped
    (2, 'b', (('c', 'no image'),))

    A slice has records alone; those that were left out are named by the whole.

    >>> records[:1].records, records[:1].skipped
    (('a',), ())
    """

    records: Sequence
    skipped: Sequence[tuple[str, str]] = ()

    def __post_init__(self):
        object.__setattr__(self, "records", tuple(self.records))
        object.__setattr__(self, "skipped", tuple(self.skipped))

    def __getitem__(self, index):
        # A tuple of records would be a batch `(x, y, sample_weight)` to Keras.
        found = self.records[index]
        return type(self)(found) if isinstance(index, slice) else found

    def __add__(self, other):
        if not isinstance(other, Records):
            return NotImplemented
        return Records((*self.records, *other.records), (*self.skipped, *other.skipped))

    def __len__(self):
        return len(self.records)


def expect_on_error(on_error: str) -> None:
    """Raises a `ValueError` unless `on_error` is "raise" or "skip".

    Example:

    >>> expect_on_error("skip")
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(
            f"`on_error` must be 'raise' or 'skip'. Received: on_error={on_error!r}"
        )


def usable_records(
    items: Iterable[tuple[str, Any]],
    read: Callable[[str, Any], Any],
    on_error: str,
    stacklevel: int = 3,
) -> tuple[list, list[tuple[str, str]]]:
    """Reads records from items; raises for or skips those that cannot be used.

    With `on_error="skip"`, one warning counts the skipped records. It points at the
    caller of the function that calls this one.

    Args:
        items: Pairs of an id and the item to read. An item that is a `ValueError`
            is raised, as if `read` had raised it.
        read: Takes an id and its item and returns the record, whose texts are then
            checked to be Unicode. It raises a `FileNotFoundError` or a `ValueError` if
            the record cannot be used.
        on_error: "raise", or "skip" to leave out the records that cannot be used.
        stacklevel: As for `warnings.warn`, where other functions are in between.

    Returns:
        A list of the records, and a list of `(id, reason)` of the skipped ones.

    Example:

    >>> usable_records([("a", "1"), ("b", "2")], lambda _, item: int(item), "raise")
    ([1, 2], [])
    """
    records, skipped = [], []
    for record_id, item in items:
        try:
            records.append(read_item(record_id, item, read))
        except (FileNotFoundError, ValueError) as error:
            if on_error == "raise":
                raise
            skipped.append((record_id, str(error)))
    if skipped:
        message = _skipped_message(skipped, len(records) + len(skipped))
        warnings.warn(message, stacklevel=stacklevel)
    return records, skipped


def read_item(record_id: str, item: Any, read: Callable[[str, Any], Any]) -> Any:
    """Returns the record of an item, as `usable_records` reads each of them.

    Raises:
        FileNotFoundError, ValueError: The item is no record.

    Example:

    >>> read_item("a", "1", lambda _, item: int(item))
    1
    """
    if isinstance(item, ValueError):
        raise item
    record = read(record_id, item)
    _expect_encodable(record_id, record)
    return record


def _expect_encodable(record_id, record):
    """Raises a `ValueError` for a text with half a character, as JSON may hold it.

    No tokenizer takes it. Paths of images may have it: the system's are not all UTF-8.
    """
    fields = dataclasses.fields(record) if dataclasses.is_dataclass(record) else ()
    for name in (field.name for field in fields if not field.name.startswith("image")):
        value = getattr(record, name)
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and not text.isascii():
                try:
                    text.encode()
                except UnicodeEncodeError as error:
                    message = f"`{name}` must be text that can be encoded as UTF-8."
                    received = f"{reprlib.repr(text)} ({error})"
                    raise record_error(record_id, message, received) from error


def _skipped_message(skipped, total, shown=10):
    ids = ", ".join(repr(record_id) for record_id, _ in skipped[:shown])
    more = ", ..." if len(skipped) > shown else ""
    return (
        f"Left out {len(skipped)} of {total} records that cannot be used: {ids}{more}. "
        f"See `skipped` for the reasons. The first is: {skipped[0][1]}"
    )


class EpochDataset(keras.utils.PyDataset):
    """A data set that divides its records into batches at the start of each epoch.

    The division depends only on `seed` and the number of the epoch, so it is the same
    with any number of workers, threads or processes. A subclass implements `cut` and
    `batch`, and calls `start_epoch(0)` at the end of its constructor.

    Args:
        records: The records.
        seed: Seed of the random generator that `cut` is given, 0 or more.
        **kwargs: `workers`, `use_multiprocessing` and `max_queue_size` of
            `keras.utils.PyDataset`.

    Example:

    ```python
    class Pairs(EpochDataset):
        def __init__(self, records, seed=0):
            super().__init__(records, seed)
            self.start_epoch(0)

        def cut(self, generator):
            return generator.permutation(len(self.records)).reshape(-1, 2)

        def batch(self, records):
            return {"prompts": records}
    ```
    """

    def __init__(self, records: Sequence, seed: int, **kwargs):
        super().__init__(**kwargs)
        self.records = tuple(records)
        self.seed = seed

    def cut(self, generator: np.random.Generator) -> Sequence:
        """Returns the batches of an epoch, each as the indices of its records."""
        raise NotImplementedError

    def batch(self, records: list) -> dict:
        """Returns the batch of the given records."""
        raise NotImplementedError

    def start_epoch(self, epoch: int) -> None:
        """Divides the records into the batches of an epoch, counted from 0."""
        self.epoch = epoch
        self._batches = self.cut(np.random.default_rng((self.seed, epoch)))

    def on_epoch_end(self) -> None:
        """Starts the next epoch; Keras calls this."""
        self.start_epoch(self.epoch + 1)

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(
                f"`index` must lie in 0..{len(self) - 1}. Received: index={index}"
            )
        return self.part(index, range(self.size_of(index)))

    def size_of(self, index: int) -> int:
        """Returns the number of records in a batch."""
        return len(self._batches[index])

    def places_of(self, index: int) -> list[int]:
        """Returns the places of a batch's records in `records`."""
        return [int(i) for i in self._batches[index]]

    def part(self, index: int, rows: Sequence[int]) -> dict:
        """Returns the given rows of a batch; only their images are read."""
        chosen = [self._batches[index][row] for row in rows]
        return self.batch([self.records[i] for i in chosen])


class EpochParts(keras.utils.PyDataset):
    """A data set that divides each epoch of another into parts, each a Keras epoch.

    Keras validates, saves and resumes at the end of an epoch. If one pass over the data
    takes days, its parts make this happen more often. A pass over all parts yields
    every record once.

    Args:
        dataset: A `ScienceQADataset`, `LlavaDataset` or another `EpochDataset`.
        parts: The number of parts of each epoch, at most its number of batches.

    Raises:
        ValueError: `parts` is no positive integer, or exceeds the number of batches.

    Example:

    ```python
    distiller.fit(EpochParts(dataset, parts=100), epochs=100)  # one pass
    ```
    """

    def __init__(self, dataset: EpochDataset, parts: int):
        expect_positive("parts", parts)
        if not isinstance(dataset, EpochDataset):
            raise ValueError(
                "`dataset` must be an `EpochDataset`, such as `ScienceQADataset` or "
                "`LlavaDataset`; `fit(..., steps_per_epoch=...)` divides an epoch of "
                "other data. A `ProcessShare` goes around the parts: "
                "`ProcessShare(EpochParts(dataset, parts))`. Received: "
                f"dataset of type {type(dataset).__name__}"
            )
        if parts > len(dataset):
            raise ValueError(
                f"An epoch of {len(dataset)} batches cannot be cut into {parts} parts."
            )
        super().__init__(
            workers=dataset.workers,
            use_multiprocessing=dataset.use_multiprocessing,
            max_queue_size=dataset.max_queue_size,
        )
        self.dataset = dataset
        self.parts = parts
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        """Goes to a part, counted from 0 over all passes."""
        self.epoch = epoch
        whole, part = divmod(epoch, self.parts)
        if self.dataset.epoch != whole:
            self.dataset.start_epoch(whole)
        bounds = np.linspace(0, len(self.dataset), self.parts + 1).astype(int)
        self._rows = range(bounds[part], bounds[part + 1])

    def on_epoch_end(self) -> None:
        """Goes to the next part; Keras calls this."""
        self.start_epoch(self.epoch + 1)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict:
        return self.dataset[self._rows[index]]

    def size_of(self, index: int) -> int:
        """Returns the number of records in a batch."""
        return self.dataset.size_of(self._rows[index])

    def places_of(self, index: int) -> list[int]:
        """Returns the places of a batch's records in the data set's `records`."""
        return self.dataset.places_of(self._rows[index])

    def part(self, index: int, rows: Sequence[int]) -> dict:
        """Returns the given rows of a batch; only their images are read."""
        return self.dataset.part(self._rows[index], rows)


@contextlib.contextmanager
def naming(record_id: str):
    """Puts the id of a record in front of the messages of errors about its images.

    Args:
        record_id: The record's id.

    Raises:
        FileNotFoundError, ValueError: The errors of the `with` block, with the id in
            the message. A `TypeError` or another `OSError` becomes a `ValueError`.

    Example:

    ```python
    with naming(record.id):
        load_image(record.image)
    ```
    """
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"Record {record_id!r}: {error}") from error
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"Record {record_id!r}: {error}") from error


def expect_positive(name: str, value) -> None:
    """Raises a `ValueError` unless `value`, of the argument `name`, is 1, 2, 3, ...

    Example:

    >>> expect_positive("batch_size", 8)
    """
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_integer or value < 1:
        raise ValueError(
            f"`{name}` must be a positive integer. Received: {name}={value!r}"
        )


def record_error(record_id: str, message: str, received: str) -> ValueError:
    """Returns the error to raise for a record that cannot be used.

    Args:
        record_id: The record's id.
        message: What the record must be, as a sentence.
        received: What was received in its place.

    Example:

    >>> record_error("7", "`id` must be a string.", "None")
    ValueError("Record '7': `id` must be a string. Received: None")
    """
    return ValueError(f"Record {record_id!r}: {message} Received: {received}")
