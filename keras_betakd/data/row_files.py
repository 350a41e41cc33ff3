"""Reads rows from files of JSON, jsonl and CSV, each damaged line by its number."""

import csv
import json
import os
import re
from collections.abc import Iterator
from typing import Any

from keras_betakd.files import expect_entries, open_text, unique_keys

CSV_ENDINGS = {".csv": ",", ".tsv": "\t"}
"""The endings of files of comma or tab separated values, and what separates them."""

MAX_FIELD = 2**31 - 1
"""The most characters in a field of a CSV file, the most that every machine takes."""


def json_rows(path: str | os.PathLike, on_error: str) -> list:
    """Returns the rows of a file that holds a JSON list, or one JSON value a line.

    Which of the two it is follows from the content, whatever the file's name.

    Args:
        path: A UTF-8 file, with or without byte order mark.
        on_error: "raise"; or "skip" to put a `ValueError` in the place of a line that
            is no JSON. A file without any line of JSON always raises.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is empty or not in this format. The message names it.

    Example:

    ```python
    rows = json_rows("train.jsonl", "raise")
    ```
    """
    _expect_file(path)
    try:
        # Takes the byte order mark away, where there is one.
        with open(path, encoding="utf-8-sig") as file:
            text = file.read()
        rows = None
        if re.match(r"\s*\[", text):
            rows = json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise _file_error(path, error) from error
    if rows is not None:
        return expect_entries(path, rows)
    # Not `splitlines`: it also splits at signs that JSON allows inside a string.
    items = [
        _parse_line(path, number, line)
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]
    damaged = [item for item in items if isinstance(item, ValueError)]
    if damaged and (on_error == "raise" or len(damaged) == len(items)):
        raise damaged[0]
    return expect_entries(path, items)


def _expect_file(path):
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no file at this path: {os.fspath(path)!r}")


def _parse_line(path, number, line):
    try:
        return json.loads(line, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        return _file_error(path, f"file line {number}: {error}")


def _file_error(path, reason):
    return ValueError(
        "A file of records must be UTF-8 and hold a JSON list, or one JSON record a "
        "line; the names of others end in .csv, .tsv, .parquet or .tar. Received: "
        f"{os.fspath(path)!r} ({reason})"
    )


def is_csv_file(source: Any) -> bool:
    """Whether a source is the path of a CSV or TSV file, by its name.

    Example:

    >>> is_csv_file("train.CSV"), is_csv_file([])
    (True, False)
    """
    if not isinstance(source, (str, os.PathLike)):
        return False
    return os.path.splitext(os.fspath(source))[1].lower() in CSV_ENDINGS


def csv_rows(path: str | os.PathLike) -> Iterator[dict]:
    """Returns the rows of a CSV or TSV file with a header, as dicts of texts.

    A row with too few or too many fields is a `ValueError` in the place of the row, as
    a quote that was left open swallows the rows behind it.

    Args:
        path: A UTF-8 file whose name ends in .csv or .tsv.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: There is no header, or a column stands twice in it.

    Example:

    ```python
    rows = list(csv_rows("train.csv"))
    ```
    """
    _expect_file(path)
    delimiter = CSV_ENDINGS[os.path.splitext(path)[1].lower()]
    with open_text(path, newline="") as file:
        header = _next_fields(csv.reader(file, delimiter=delimiter)) or []
    if header and not header[0].strip() and len(header) > 1:
        raise ValueError(
            f"{os.fspath(path)!r}: the first column has no name. pandas writes the "
            "numbers of the rows there: leave them out by `frame.to_csv(path, "
            f"index=False)`, or name the column. Received: {header}"
        )
    is_named = header and all(name.strip() for name in header)
    if not is_named or len(set(header)) < len(header):
        raise ValueError(
            f"{os.fspath(path)!r} must begin with a line of column names, each once. "
            f"Received: {header}"
        )
    return _read_csv(path, delimiter, header)


def _read_csv(path, delimiter, header):
    with open_text(path, newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        _next_fields(reader)
        while True:
            try:
                fields = _next_fields(reader)
            except csv.Error as error:
                raise ValueError(
                    f"{os.fspath(path)!r}, line {reader.line_num}: {error}"
                ) from error
            if fields is None:
                return
            if fields and len(fields) != len(header):
                yield ValueError(
                    f"{os.fspath(path)!r}, line {reader.line_num}: a row must have "
                    f"{len(header)} fields, as the header has. Received: {len(fields)}"
                )
            elif fields:
                yield dict(zip(header, fields, strict=True))


def _next_fields(reader):
    """The fields of the next row, of any length; `None` at the end.

    A picture as a `data:` address is longer than Python's limit, which is the whole
    process' and stays as it was.
    """
    limit = csv.field_size_limit(MAX_FIELD)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(limit)
