"""Reads ScienceQA, folders in the official layout or tables, to records."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_betakd.data.batches import (
    Records,
    expect_on_error,
    naming,
    record_error,
    usable_records,
)
from keras_betakd.data.ids import with_unique_ids
from keras_betakd.data.images import check_image, load_image
from keras_betakd.data.scienceqa_tables import (
    is_scienceqa_table,
    scienceqa_rows,
    table_fields,
)
from keras_betakd.files import expect_entries, read_json
from keras_betakd.folders import inside

LETTERS = "ABCDE"
_TEXTS = ("question", "hint", "subject", "grade")
_OPTIONAL_KEYS = ("topic", "category", "skill", "task", "lecture", "solution")


@dataclasses.dataclass(frozen=True)
class ScienceQARecord:
    """One multiple-choice question.

    Args:
        id: The problem's id.
        question: The question.
        choices: Two to five answers to choose from.
        answer: The index of the right choice.
        hint: Text to read before the question; may be empty.
        image: A source that `load_image` reads, usually a path; it is read only when a
            batch needs it. `None` for a question of text alone.
        subject: "natural science", "social science" or "language science".
        grade: "grade1" to "grade12".
        topic, category, skill, task, lecture, solution, split: As in `problems.json`.
        prompt: What a question file asks it by, without an image mark; empty if it
            comes from none.

    Raises:
        ValueError: `choices`, `answer`, `question`, `hint`, `subject` or `grade` has
            another type or value than described. The message names the id.

    Example:

    >>> record = ScienceQARecord(
    ...     id="4", question="Which is a mammal?", choices=("cat", "trout"), answer=0
    ... )
    >>> record.choices[record.answer]
    'cat'
    """

    id: str
    question: str
    choices: Sequence[str]
    answer: int
    hint: str = ""
    image: Any = None
    subject: str = ""
    grade: str = ""
    topic: str = ""
    category: str = ""
    skill: str = ""
    task: str = ""
    lecture: str = ""
    solution: str = ""
    split: str = ""
    prompt: str = ""

    def __post_init__(self):
        object.__setattr__(self, "choices", _checked_choices(self))
        if isinstance(self.answer, np.integer):  # as pandas has it
            object.__setattr__(self, "answer", int(self.answer))
        texts = {key: getattr(self, key) for key in _TEXTS}
        if not all(isinstance(text, str) for text in texts.values()):
            received = ", ".join(f"{key}={text!r}" for key, text in texts.items())
            raise record_error(self.id, "these must be strings.", received)
        # `True` is an `int` to Python, and no answer.
        if type(self.answer) is not int or not 0 <= self.answer < len(self.choices):
            count = len(self.choices)
            message = f"`answer` must be the index of one of the {count} choices."
            raise record_error(self.id, message, f"answer={self.answer!r}")


def _checked_choices(record):
    choices = record.choices
    if isinstance(choices, np.ndarray):
        choices = choices.tolist()
    if (
        not isinstance(choices, (list, tuple))
        or not 2 <= len(choices) <= len(LETTERS)
        or not all(isinstance(choice, str) for choice in choices)
    ):
        message = f"`choices` must be two to {len(LETTERS)} strings."
        raise record_error(record.id, message, f"choices={choices!r}")
    return tuple(choices)


class ScienceQARecords(Records):
    """The records of a split, as a read-only sequence.

    Args:
        records: The records that can be used.
        skipped: `(id, reason)` of each record left out; empty unless the loader was
            called with `on_error="skip"`.

    Example:

    >>> record = ScienceQARecord("4", "Which is a mammal?", ("cat", "trout"), 0)
    >>> records = ScienceQARecords([record], skipped=[("7", "no image")])
    >>> len(records), len(records.skipped)
    (1, 1)
    """


def load_scienceqa(
    directory: Any,
    split: str | None = None,
    on_error: str = "raise",
    verify_images: bool | None = None,
) -> ScienceQARecords:
    """Loads a split of ScienceQA: the official folder, or a table as the hub has it.

    All records are checked here, before training starts: for missing files and keys, an
    answer that is no choice, an image that does not exist.

    Args:
        directory: The folder with `problems.json`, `pid_splits.json`, `images/`; or a
            `datasets.Dataset`, a `pyarrow.Table`, a list of rows, a Parquet file or a
            folder of them, with the columns image, question, choices, answer and hint.
            Their records are named by the numbers of the rows, from 0.
        split: A split named in `pid_splits.json`, "train" by default: "train", "val",
            "test", "minival"... Of a folder of Parquet files, those whose names begin
            with it. Of other tables, `None`.
        on_error: "raise", or "skip" to leave out the records that cannot be used: one
            warning counts them, and `skipped` holds the id and the reason of each.
        verify_images: Whether to decode every image now, to find damaged ones; without
            it, only the existence of the files is checked, and a damaged one raises
            when its batch is read. `None` decodes them with `on_error="skip"`.

    Returns:
        `ScienceQARecords`, in the split's order.

    Raises:
        FileNotFoundError: A JSON file is missing, or (unless skipped) a record's
            image; the message then names the record's id.
        ValueError: `on_error` has another value, a JSON file is damaged, the split is
            unknown, or (unless skipped) a record cannot be used; the message then names
            its id.

    Example:

    ```python
    records = load_scienceqa("data/scienceqa", "test", on_error="skip")
    ```
    """
    expect_on_error(on_error)
    if is_scienceqa_table(directory):
        items = with_unique_ids(scienceqa_rows(directory, split, on_error), None)

        def read_row(record_id, row):
            record = ScienceQARecord(**table_fields(record_id, row, split))
            check_record_image(record, on_error, verify_images)
            return record

        return ScienceQARecords(*usable_records(items, read_row, on_error))
    split = "train" if split is None else split
    problems = read_mapping(directory, "problems.json")
    splits = read_mapping(directory, "pid_splits.json")
    if split not in splits:
        raise ValueError(
            f"`split` must be one of {sorted(splits)}, as pid_splits.json has it. "
            f"Received: split={split!r}"
        )
    if not isinstance(splits[split], list):
        raise ValueError(
            "pid_splits.json must hold a list of ids for each split. Received: "
            f"{type(splits[split]).__name__} for {split!r}"
        )
    where = os.path.join(directory, "pid_splits.json")
    expect_entries(where, splits[split], f"ids of the split {split!r}")
    seen = set()

    def read(pid, _):
        if pid in seen:
            raise ValueError(f"Record {pid!r}: listed twice in split {split!r}.")
        seen.add(pid)
        record = problem_record(directory, pid, problems)
        check_record_image(record, on_error, verify_images)
        return record

    items = ((str(pid), None) for pid in splits[split])
    return ScienceQARecords(*usable_records(items, read, on_error))


def read_mapping(directory: str | os.PathLike, name: str) -> dict:
    """Reads the object in one of the JSON files of a ScienceQA folder."""
    path = os.path.join(directory, name)
    if not os.path.isfile(path):
        raise FileNotFoundError(
            "A ScienceQA folder holds problems.json, pid_splits.json and images/. "
            f"This file is missing: {path!r}"
        )
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(
            f"{path!r} must hold a JSON object. Received: {type(value).__name__}"
        )
    return value


def problem_record(
    directory: str | os.PathLike, pid: str, problems: dict
) -> ScienceQARecord:
    """Returns the record of one problem, with its image in the problem's own split.

    The splits `minival` and `trainval` are lists of ids without image folders.

    Raises:
        ValueError: The problem is missing or cannot be used; the message names its id.
    """
    try:
        fields = problems[pid]
        if not isinstance(fields, dict):
            raise record_error(pid, "its entry must be an object.", repr(fields))
        values = {key: fields[key] for key in (*_TEXTS, "choices", "answer")}
        name, folder = fields["image"], fields["split"]
    except KeyError as error:
        where = "its entry" if pid in problems else "problems.json"
        raise ValueError(f"Record {pid!r}: {where} lacks the key {error}.") from error
    values.update({key: fields.get(key, "") for key in _OPTIONAL_KEYS})
    image = _image_path(directory, pid, folder, name)
    return ScienceQARecord(id=pid, image=image, split=folder, **values)


def _image_path(directory, pid, split, name):
    """The path of a problem's image, which never leads out of `images/`."""
    parts = [split, pid] if name is None else [split, pid, name]
    if not all(map(_is_plain, parts)):
        raise record_error(
            pid,
            "`split`, the id and `image` must be plain names (`image` may be null, for "
            "no image).",
            f"split={split!r}, image={name!r}",
        )
    if name is None:
        return None
    with naming(pid):
        return str(inside(os.path.join(directory, "images"), "/".join(parts)))


def _is_plain(name):
    if not isinstance(name, str) or name.strip() in ("", ".", ".."):
        return False
    return not any(sign in name for sign in "/\\\0")


def check_record_image(
    record: ScienceQARecord, on_error: str, verify_images: bool | None
) -> None:
    """Raises if the image of a record is missing or, if it is decoded, damaged.

    Args:
        record: The record.
        on_error, verify_images: As for `load_scienceqa`.

    Raises:
        FileNotFoundError, ValueError: As for `load_image`, with the record's id.
    """
    if verify_images is None:
        verify_images = on_error == "skip"
    if verify_images:
        record_images(record)
    elif record.image is not None:
        with naming(record.id):
            check_image(record.image)


def record_images(record: ScienceQARecord) -> list:
    """Reads the images of a record: a list of one array, or an empty list.

    Raises:
        FileNotFoundError, ValueError: As for `load_image`, with the record's id.
    """
    if record.image is None:
        return []
    with naming(record.id):
        return [load_image(record.image)]
