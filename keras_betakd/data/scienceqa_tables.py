"""Reads ScienceQA out of tables, as the hub has it: one row for each problem."""

import os
import pathlib
import re
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from keras_betakd.data.batches import record_error
from keras_betakd.data.image_sources import image_cells
from keras_betakd.data.sources import RowStream, rows_of
from keras_betakd.data.tables import is_table

_SPLITS = {"val": "validation"}
_NEEDED = ("image", "question", "choices", "answer", "hint")
_ADVICE = "Rename those that have other names."
_TEXTS = ("hint", "subject", "grade", "topic", "category", "skill", "task")
_LONG_TEXTS = ("lecture", "solution")


def is_scienceqa_table(source: Any) -> bool:
    """Whether a source is no folder in the official layout, but has rows.

    Example:

    >>> is_scienceqa_table([{"question": "?"}])
    True
    """
    if not isinstance(source, (str, os.PathLike)):
        return True
    path = pathlib.Path(source)
    return path.suffix.lower() == ".parquet" or bool(
        path.is_dir()
        and not (path / "problems.json").exists()
        and list(path.glob("*.parquet"))
    )


def scienceqa_rows(source: Any, split: str | None, on_error: str) -> Iterable:
    """Returns the rows of a split; `split=None` takes the table for the split.

    Args:
        source: A list of dicts, a `datasets.Dataset`, or the path of a Parquet file or
            of a folder whose files are named `<split>-*.parquet`, as on the hub.
        split: "train", "val", "test", or `None`.
        on_error: "raise" or "skip".

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The table is of another split, there is no file of the split, or a
            column is missing.
        TypeError: `source` has no rows in memory.
    """
    own_split = str(getattr(source, "split", None) or "")
    wanted = split if split is None else _SPLITS.get(split, split)
    if is_table(source) and split and own_split and own_split != wanted:
        raise ValueError(
            f"This table is the split {own_split!r}, not the one that was asked for. "
            f"Received: split={split!r}"
        )
    if isinstance(source, (str, os.PathLike)) and os.path.isdir(source):
        return [
            row
            for file in _files_of(pathlib.Path(source), wanted)
            for row in rows_of(file, on_error, _NEEDED, advice=_ADVICE)
        ]
    rows = rows_of(source, on_error, _NEEDED, advice=_ADVICE)
    if isinstance(rows, RowStream):
        raise TypeError(
            "ScienceQA is read into memory: give a `datasets.Dataset`, without "
            f"streaming. Received: {type(source).__name__}"
        )
    return rows


def _files_of(folder, split):
    names = sorted(path.name for path in folder.glob("*.parquet"))
    found = {re.split(r"[-.]", name)[0] for name in names}
    if split is None and len(found) > 1 or split is not None and split not in found:
        raise ValueError(
            "`split` must be one of those that the names of the Parquet files begin "
            f"with, {sorted(found)} ('val' for 'validation'). Received: split={split!r}"
        )
    return [folder / n for n in names if split in (None, re.split(r"[-.]", n)[0])]


def table_fields(record_id: str, row: Any, split: str | None) -> dict:
    """Returns the fields of a `ScienceQARecord` out of a row.

    Raises:
        ValueError: The row lacks a column, or has several images.
    """
    if not isinstance(row, Mapping) or not set(_NEEDED) <= set(row):
        message = f"a row must be a dict with the columns {_NEEDED}."
        raise record_error(record_id, message, reprlib.repr(row))
    images = image_cells(row["image"])
    if len(images) > 1:
        message = "a question has one image or none."
        raise record_error(record_id, message, f"{len(images)} images")
    texts = {key: row.get(key) for key in _TEXTS + _LONG_TEXTS}
    return {
        "id": record_id,
        "question": row["question"],
        "choices": row["choices"],
        "answer": row["answer"],
        "image": images[0] if images else None,
        "split": split or "",
        **{key: "" if text is None else text for key, text in texts.items()},
    }
