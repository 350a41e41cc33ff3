"""Reads rows with images from Hugging Face datasets and Parquet files."""

import copy
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any


def table_rows(
    source: Any, columns: Sequence[str], whole: bool = False
) -> Iterator[dict]:
    """Returns the rows of a table.

    Args:
        source: An object with `column_names` and rows by index, as a
            `datasets.Dataset`; or the path of a Parquet file or of a folder of them.
            The image files in a dataset are read when a batch needs them, those in
            Parquet files here.
        columns: The names of the columns that are needed. They are checked before any
            row is read.
        whole: Whether to read all columns of Parquet files, not the needed ones alone.

    Returns:
        The rows as dicts.

    Raises:
        FileNotFoundError: There is no Parquet file.
        ValueError: A file is no Parquet file, or a column is missing or there twice.
        ImportError: There are Parquet files to read, but no pyarrow.

    Example:

    ```python
    rows = table_rows("train-00000.parquet", ["image", "question"])
    ```
    """
    if isinstance(source, (str, os.PathLike)):
        return _parquet_rows(pathlib.Path(source), list(columns), whole)
    expect_columns("The table", source.column_names, columns)
    table = undecoded(source)
    return (_with_stored_images(table, number) for number in range(len(table)))


def is_table(source: Any) -> bool:
    """Whether `source` has named columns and rows by index, as `datasets.Dataset`."""
    # A `DatasetDict` has these too, and is several tables.
    names = ("column_names", "__getitem__", "__len__")
    return not isinstance(source, Mapping) and all(hasattr(source, n) for n in names)


def expect_columns(where: str, present: Iterable[str], columns: Sequence[str]) -> None:
    """Raises a `ValueError` if one of the columns is missing, or there twice.

    Args:
        where: The name of the table or row, for the message.
        present: The names of the columns that the table or row has.
        columns: The names of the columns that are needed.

    Example:

    >>> expect_columns("Row 3", ["question", "answer"], ["question"])
    """
    present = list(present)
    twice = [column for column in columns if present.count(column) > 1]
    if twice:
        raise ValueError(
            f"{where} has the columns {twice} twice; one would be lost. Rename or drop "
            f"it. Received: {present}"
        )
    lacking = [column for column in columns if column not in present]
    if lacking:
        raise ValueError(
            f"{where} lacks the columns {lacking}. Say what they are called with "
            "`image_column`, `question_column`, `answer_column`, `id_column`, or "
            "another argument of the loader. "
            f"Received: {sorted(map(str, present))}"
        )


def undecoded(table: Any) -> Any:
    """Makes a Hugging Face dataset or stream return files as bytes, not decoded."""
    for column, feature in (getattr(table, "features", None) or {}).items():
        as_bytes = _as_bytes(feature)
        if as_bytes is not feature:
            table = table.cast_column(column, as_bytes)
    return table


def _as_bytes(feature):
    """The feature without decoding, also within lists; itself if it decodes nothing."""
    if getattr(feature, "decode", False):
        changed = copy.copy(feature)
        changed.decode = False
        return changed
    if isinstance(feature, dict):
        changed = {key: _as_bytes(value) for key, value in feature.items()}
        same = all(changed[key] is feature[key] for key in feature)
        return feature if same else changed
    if isinstance(feature, (list, tuple)):
        changed = [_as_bytes(value) for value in feature]
        same = all(a is b for a, b in zip(changed, feature, strict=True))
        return feature if same else changed
    inner = getattr(feature, "feature", None)
    if inner is None or _as_bytes(inner) is inner:
        return feature
    changed = copy.copy(feature)
    changed.feature = _as_bytes(inner)
    return changed


def _with_stored_images(table, number):
    """A row of a table; its image files stay in the table until they are needed."""
    row = dict(table[number])
    for column, cell in row.items():
        if _file_of(cell) is not None:
            row[column] = _StoredImage.of(table, number, column)
        elif isinstance(cell, list) and any(_file_of(c) is not None for c in cell):
            row[column] = [
                c if _file_of(c) is None else _StoredImage.of(table, number, column, i)
                for i, c in enumerate(cell)
            ]
    return row


def _file_of(cell):
    """Returns the bytes of the image file in a cell; `None` if it holds none."""
    cell = cell.get("bytes") if isinstance(cell, dict) else cell
    return cell if isinstance(cell, bytes) else None


class _StoredImage(bytes):
    """The bytes of an image file in a table, read from the table by `bytes(...)`.

    `load_image` does this when a batch needs the image; until then it uses no memory.
    """

    @classmethod
    def of(cls, table, number, column, index=None):
        stored = cls()
        stored.place = table, number, column, index
        return stored

    def __bytes__(self):
        table, number, column, index = self.place
        cell = table[number][column]
        return _file_of(cell if index is None else cell[index])


def _parquet_rows(path, columns, whole):
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise FileNotFoundError(f"There is no Parquet file at this path: '{path}'")
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            "Parquet files are read with pyarrow, which is not installed: "
            "pip install pyarrow"
        ) from error

    def errors_named(file, read):
        try:
            return read()
        except pyarrow.ArrowException as error:
            raise ValueError(f"Not a Parquet file: '{file}' ({error})") from error

    for file in files:
        names = errors_named(file, lambda file=file: parquet.read_schema(file)).names
        expect_columns(f"'{file}'", names, names if whole else columns)
    read = None if whole else columns

    def rows():
        for file in files:
            batches = parquet.ParquetFile(file).iter_batches(1000, columns=read)
            while batch := errors_named(file, lambda b=batches: next(b, None)):
                yield from batch.to_pylist()

    return rows()
