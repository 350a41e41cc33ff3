"""Checks all records of a data set before a training begins."""

import copy

from keras_betakd.preprocessing.adapters import as_dataset, is_raw_records, take_records
from keras_betakd.preprocessing.checks import RecordsTooLong
from keras_betakd.preprocessing.epochs import FormattedDataset
from keras_betakd.preprocessing.iterables import begin
from keras_betakd.preprocessing.records import PlacedRecords
from keras_betakd.preprocessing.unknown_tokens import warn_of_unknown

# How many problems an error lists.
LISTED = 100


def check_records(x, formatter, batch_size=None):
    """Brings all of `x` into the form of a batch once, without any model.

    Args:
        x: data that comes in batches and to an end, and can be read again.
        formatter: a `BatchFormatter`.
        batch_size: records per batch of raw records; 32 by default.

    Returns:
        The number of examples.

    Raises:
        ValueError: records that cannot be used. The message lists them.

    A warning names those whose answers have words that the tokenizer does not know.
    """
    unknown = {}
    dataset = None if hasattr(x, "__next__") else as_dataset(x, batch_size)
    if dataset is None:
        raise ValueError(
            "Records in batches can be checked, or raw records; a generator would be "
            f"used up by it. Received: x of type {type(x)}"
        )
    formatter = _raising(formatter, unknown)
    checked = FormattedDataset(dataset, lambda *batch: _checked(formatter, *batch))
    begin(dataset)
    count, problems = 0, []
    for size, found in checked:
        count += size
        problems += found
    if unknown:
        warn_of_unknown(unknown, count)
    if problems:
        more = len(problems) - LISTED
        raise ValueError(
            f"Of {count} records, this many cannot be used: {len(problems)}\n- "
            + "\n- ".join(problems[:LISTED])
            + (f"\nand {more} more." if more > 0 else "")
        )
    return count


def _raising(formatter, unknown):
    """A copy of the formatter whose preprocessor leaves nothing out.

    Args:
        formatter: a `BatchFormatter`.
        unknown: dict that gets what `unknown_tokens` returns of each batch.
    """
    formatter = copy.copy(formatter)
    formatter.parts = 1
    if formatter.preprocessor is not None:
        formatter.preprocessor = copy.copy(formatter.preprocessor)
        formatter.preprocessor.on_too_long = "raise"
        formatter.preprocessor.note_unknown = unknown.update
    return formatter


def _checked(formatter, batch, places):
    """`(size, problems)` of a batch: the number of its examples, and messages."""
    try:
        return len(formatter(batch, places)[1]), []
    except ValueError as error:
        if not is_raw_records(batch):
            return 0, _said(error)
    problems, size = [], len(batch["prompts"])
    records = batch
    if not isinstance(batch, PlacedRecords):
        records = PlacedRecords(batch, places(size))
    for row in range(size):
        try:
            formatter(take_records(records, [row]))
        except ValueError as error:
            problems += _said(error)
    return size, problems


def _said(error):
    """Its sentences, without advice that would hold for all of them."""
    return (
        [*error.reasons.values()] if isinstance(error, RecordsTooLong) else [str(error)]
    )
