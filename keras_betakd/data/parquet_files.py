"""Reads rows from Parquet files and Arrow tables, whose image files are in memory."""

import glob
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from keras_betakd.data.narrow_floats import shortened
from keras_betakd.data.splits import expect_one_split
from keras_betakd.data.tables import COLUMN_ADVICE, expect_columns


def parquet_rows(
    path: str | os.PathLike, columns: Sequence[str], advice: str = COLUMN_ADVICE
) -> Iterator[dict]:
    """Returns the rows of a Parquet file, of those of a pattern, or of a folder.

    Args:
        path: The path.
        columns: The names of the columns that there must be. They are checked before
            any row is read.
        advice: As for `expect_columns`.

    Raises:
        FileNotFoundError: There is no Parquet file.
        ValueError: A file is no Parquet file, a column is missing or there twice, the
            files are of several splits, or there are no rows.
        ImportError: There are Parquet files to read, but no pyarrow.

    Example:

    ```python
    rows = parquet_rows("data/train-*.parquet", ["image", "question"])
    ```
    """
    files = _files_of(pathlib.Path(path))
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

    def names_and_size(file):
        with parquet.ParquetFile(file) as opened:
            return opened.schema_arrow.names, opened.metadata.num_rows

    count = 0
    for file in files:
        names, size = errors_named(file, lambda file=file: names_and_size(file))
        count += size
        expect_columns(f"'{file}'", names, [*dict.fromkeys([*names, *columns])], advice)
    if not count:
        raise ValueError(f"'{path}' holds no records: there are no rows.")

    def rows():
        for file in files:
            batches = parquet.ParquetFile(file).iter_batches(1000)
            while batch := errors_named(file, lambda b=batches: next(b, None)):
                yield from _rows_of(batch)

    return rows()


def is_arrow(source: Any) -> bool:
    """Whether `source` is a table of pyarrow."""
    return type(source).__module__.startswith("pyarrow.") and hasattr(
        source, "to_batches"
    )


def arrow_rows(
    table: Any, columns: Sequence[str], advice: str = COLUMN_ADVICE
) -> Iterator[dict]:
    """Returns the rows of a `pyarrow.Table`; the arguments are as for `parquet_rows`.

    Raises:
        ValueError: A column is missing or there twice.
    """
    names = table.schema.names
    expect_columns("The table", names, [*dict.fromkeys([*names, *columns])], advice)
    return (row for batch in table.to_batches(1000) for row in _rows_of(batch))


def _files_of(path):
    if path.is_file():
        return [path]
    is_folder = path.is_dir()
    pattern = path / "*.parquet" if is_folder else path
    escaped = os.path.join(glob.escape(str(path)), "*.parquet")
    found = sorted(glob.glob(escaped if is_folder else str(pattern)))
    if not found:
        raise FileNotFoundError(f"There is no Parquet file at this path: '{path}'")
    expect_one_split(path, found)
    return found


def _rows_of(batch):
    kinds = {field.name: _number_type(field.type) for field in batch.schema}
    return shortened(batch.to_pylist(), kinds)


def _number_type(kind):
    """NumPy's name of a type of Arrow, or of what is in its lists."""
    while hasattr(kind, "value_type"):
        kind = kind.value_type
    return {"float": "float32", "halffloat": "float16"}.get(str(kind))
