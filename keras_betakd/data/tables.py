"""Reads rows with images from Hugging Face datasets and Parquet files."""

import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any


def table_rows(
    source: Any, image: str, columns: Sequence[str]
) -> list[dict] | Iterator[dict]:
    """Returns the rows of a table.

    Args:
        source: An object with `column_names` and rows by index, as a
            `datasets.Dataset`; or the path of a Parquet file or of a folder of them.
        image: The column of the images. The image files in a dataset are read when a
            batch needs them, those in Parquet files here.
        columns: The names of all columns that are needed. They are checked before any
            row is read.

    Returns:
        The rows as dicts.

    Raises:
        FileNotFoundError: There is no Parquet file.
        ValueError: A file is no Parquet file, or a column is missing or there twice.
        TypeError: `source` is of another type.
        ImportError: There are Parquet files to read, but no pyarrow.

    Example:

    ```python
    rows = table_rows("train-00000.parquet", "image", ["image", "question"])
    ```
    """
    if isinstance(source, (str, os.PathLike)):
        return _parquet_rows(pathlib.Path(source), columns)
    if not hasattr(source, "column_names") or not hasattr(source, "__getitem__"):
        raise TypeError(
            "`source` must be a list of dicts, a `datasets.Dataset` (one split of a "
            "`DatasetDict`), or the path of Parquet files. Received: "
            f"{type(source).__name__}"
        )
    expect_columns("The table", source.column_names, columns)
    table = _undecoded(source, image)
    return (_with_stored_image(table, k, image) for k in range(len(table)))


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
            "`image_column`, `question_column`, `answer_column` and `id_column`. "
            f"Received: {sorted(map(str, present))}"
        )


def _undecoded(table, image):
    """Makes a Hugging Face dataset return image files as bytes, not decoded."""
    feature = (getattr(table, "features", None) or {}).get(image)
    if not getattr(feature, "decode", False):
        return table
    return table.cast_column(image, type(feature)(decode=False))


def _with_stored_image(table, number, image):
    row = table[number]
    if _file_of(row[image]) is None:
        return row
    return {**row, image: _StoredImage.of(table, number, image)}


def _file_of(cell):
    """Returns the bytes of the image file in a cell; `None` if it holds none."""
    cell = cell.get("bytes") if isinstance(cell, dict) else cell
    return cell if isinstance(cell, bytes) else None


class _StoredImage(bytes):
    """The bytes of an image file in a table, read from the table by `bytes(...)`.

    `load_image` does this when a batch needs the image; until then it uses no memory.
    """

    @classmethod
    def of(cls, table, number, image):
        stored = cls()
        stored.place = table, number, image
        return stored

    def __bytes__(self):
        table, number, image = self.place
        return _file_of(table[number][image])


def _parquet_rows(path, columns):
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

    def each(read):
        for file in files:
            try:
                yield file, read(file)
            except pyarrow.ArrowException as error:
                raise ValueError(f"Not a Parquet file: '{file}' ({error})") from error

    for file, schema in each(parquet.read_schema):
        expect_columns(f"'{file}'", schema.names, columns)
    tables = each(lambda file: parquet.ParquetFile(file).read(columns=list(columns)))
    return [row for _, table in tables for row in table.to_pylist()]
