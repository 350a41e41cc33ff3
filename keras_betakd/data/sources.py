"""Turns what users have (lists, files, tables, streams) into rows, unread if they can.

a list of dicts                             in memory
.json, .jsonl, .csv, .tsv                   read whole; images are paths or in base64
.parquet, a folder of them, pyarrow.Table   read whole, with the images in it
`datasets.Dataset`                          images stay in it
`datasets.IterableDataset`, iterators, tar  a stream: read once per pass, in order
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from keras_betakd.data.narrow_floats import feature_types, shortened
from keras_betakd.data.parquet_files import arrow_rows, is_arrow, parquet_rows
from keras_betakd.data.row_files import CSV_ENDINGS, csv_rows, json_rows
from keras_betakd.data.tables import (
    COLUMN_ADVICE,
    expect_columns,
    is_table,
    table_rows,
    undecoded,
)
from keras_betakd.data.tar_files import TAR_ENDINGS, TarRows
from keras_betakd.files import expect_entries


class RowStream:
    """Rows that come one after the other, as many as there are.

    Args:
        open_pass: Function that returns an iterator of a pass over all rows.
        is_once: Whether there is a single pass, as an iterator has.

    Example:

    >>> [row["n"] for row in RowStream(lambda: iter([{"n": 1}, {"n": 2}]))]
    [1, 2]
    """

    def __init__(self, open_pass: Callable[[], Iterator], is_once: bool = False):
        self.open_pass = open_pass
        self.is_once = is_once

    def __iter__(self) -> Iterator:
        return self.open_pass()


def rows_of(
    source: Any,
    on_error: str,
    needed: Sequence[str] = (),
    optional: Sequence[str] = (),
    advice: str = COLUMN_ADVICE,
) -> Iterable | RowStream:
    """Returns the rows of a source, each a dict, or a `ValueError` in its place.

    Args:
        source: See the table above.
        on_error: "raise" or "skip".
        needed: The columns that there must be. Of a stream, each row shows it.
        optional: Columns that a table must have, too, but not a list or a JSON file.
        advice: What to do about a column that is missing, as a sentence.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A file is damaged or empty, or a column is missing.
        TypeError: `source` is of a type that has no rows.

    Example:

    >>> list(rows_of([{"question": "Hi"}], "raise", ["question"]))
    [{'question': 'Hi'}]
    """
    columns = [*optional, *needed]
    if isinstance(source, (list, tuple)) and not _are_tars(source):
        return _expect_columns_of_list("The list", source, needed, advice)
    if isinstance(source, (list, tuple)):
        return RowStream(TarRows(source).__iter__)
    if isinstance(source, (str, os.PathLike)):
        kind = _kind_of_path(source)
        if kind == "tar":
            return RowStream(TarRows(source).__iter__)
        if kind == "parquet":
            return parquet_rows(source, columns, advice)
        rows = json_rows(source, on_error) if kind is None else list(csv_rows(source))
        expect_entries(source, rows)
        where = f"'{os.fspath(source)}'"
        return _expect_columns_of_list(where, rows, needed, advice)
    if isinstance(source, RowStream):
        return source
    if is_arrow(source):
        return arrow_rows(source, columns, advice)
    if is_table(source):
        return table_rows(source, columns, advice)
    if hasattr(source, "__iter__") and not hasattr(source, "__len__"):
        return RowStream(_Passes(undecoded(source)), hasattr(source, "__next__"))
    raise TypeError(
        "`source` must be a list of dicts, a `datasets.Dataset` (one split of a "
        "`DatasetDict`: `dataset['train']`) or a stream of rows, or the path of a file "
        "of JSON, jsonl, CSV, Parquet or tar, or of a folder of Parquet or tar files "
        "(a pandas data frame by `frame.to_dict('records')`). "
        f"Received: {type(source).__name__}"
    )


def _are_tars(source):
    kinds = (str, os.PathLike)
    return bool(source) and all(
        isinstance(path, kinds) and os.fspath(path).lower().endswith(TAR_ENDINGS)
        for path in source
    )


def _expect_columns_of_list(where, rows, columns, advice):
    """Returns the rows; raises a `ValueError` if there is a column that none has."""
    present = {column for row in rows if isinstance(row, Mapping) for column in row}
    if present:
        expect_columns(where, present, columns, advice)
    return rows


def _kind_of_path(path):
    name = os.fspath(path).lower()
    if os.path.isdir(path):
        kinds = {os.path.splitext(entry)[1].lower() for entry in os.listdir(path)}
        if {".parquet", ".tar"} <= kinds:
            raise ValueError(
                "A folder must hold Parquet files or tar files, not both; say which by "
                f"'folder/*.tar', or give one file. Received: {os.fspath(path)!r}"
            )
        return "tar" if ".tar" in kinds else "parquet"
    if name.endswith(TAR_ENDINGS):
        return "tar"
    ending = os.path.splitext(name)[1]
    return {**dict.fromkeys(CSV_ENDINGS, "csv"), ".parquet": "parquet"}.get(ending)


class _Passes:
    """Opens passes over an iterable; an iterator has only one."""

    def __init__(self, iterable):
        self.iterable = iterable
        self.is_used = False

    def __call__(self):
        if self.is_used and hasattr(self.iterable, "__next__"):
            raise ValueError(
                "An iterator can be read once, and this one was. Give data that can be "
                "read again (`datasets.IterableDataset`, tar files), or an iterator "
                "that goes on for all epochs with `steps_per_epoch`."
            )
        self.is_used = True
        return shortened(self.iterable, feature_types(self.iterable))
