"""Loaded records as the columns that `fit` takes, with images that are not read yet."""

from collections.abc import Sequence
from typing import Any

from keras_betakd.data.batches import Records
from keras_betakd.data.llava_records import LlavaRecord
from keras_betakd.data.scienceqa import scienceqa_prompt, scienceqa_response
from keras_betakd.data.scienceqa_records import ScienceQARecord

_KINDS = (LlavaRecord, ScienceQARecord)


def is_records(x: Any) -> bool:
    """Whether `x` is what a loader returns, or a list of its records.

    Example:

    >>> is_records([LlavaRecord("7", ["Hi"], ["Hello!"])]), is_records(["Hi"])
    (True, False)
    """
    if isinstance(x, Records):
        return True
    is_list = isinstance(x, (list, tuple)) and bool(x)
    return is_list and all(isinstance(record, _KINDS) for record in x)


def record_columns(records: Sequence) -> dict:
    """Returns records as raw records, a dict of lists.

    ScienceQA's are in the published form, with a letter for an answer, as
    `ScienceQADataset` has them by default.

    Args:
        records: `LlavaRecord`s and `ScienceQARecord`s.

    Returns:
        "ids", "prompts", "responses" and "images", whose entries are lists of sources
        that `load_image` reads. "system" only if a record has one.

    Raises:
        ValueError: There are no records, or records of another kind.

    Example:

    >>> record_columns([LlavaRecord("7", ["Hi"], ["Hello!"])])
    {'ids': ['7'], 'prompts': ['Hi'], 'responses': ['Hello!'], 'images': [[]]}
    """
    if not len(records):
        raise ValueError(
            "There must be at least one record. Received: none; were all skipped, as "
            "none can be used?"
        )
    records = [as_llava_record(record) for record in records]
    columns = {
        "ids": [record.id for record in records],
        "prompts": [_turns(record.prompts) for record in records],
        "responses": [_turns(record.responses) for record in records],
        "images": [list(record.images) for record in records],
    }
    if any(record.system is not None for record in records):
        columns["system"] = [record.system for record in records]
    return columns


def as_llava_record(record: Any) -> LlavaRecord:
    """Returns a record of any loader as a `LlavaRecord`.

    Raises:
        ValueError: It is no record.

    Example:

    >>> record = ScienceQARecord("4", "A mammal?", ("cat", "trout"), 0)
    >>> as_llava_record(record).responses
    ('A',)
    """
    if isinstance(record, ScienceQARecord):
        images = [] if record.image is None else [record.image]
        prompt, response = scienceqa_prompt(record), scienceqa_response(record)
        return LlavaRecord(record.id, [prompt], [response], images)
    if not isinstance(record, LlavaRecord):
        raise ValueError(
            "Records must be those of one of the loaders of `keras_betakd.data`. "
            f"Received: {type(record).__name__}"
        )
    return record


def _turns(texts):
    return texts[0] if len(texts) == 1 else list(texts)
