"""Reads tab-separated tables, and refuses what would lose or move cells in silence."""

import contextlib
import csv
import os
import re
from collections.abc import Iterable, Iterator, Sequence

from keras_betakd.files import open_text


def read_tsv(
    path: str | os.PathLike, columns: Sequence[str] = ()
) -> list[tuple[str, dict[str, str]]]:
    """Reads a table with a header, quoted as pandas writes it.

    Args:
        path: The file, in UTF-8.
        columns: The columns that it must have.

    Returns:
        For each row its place, for messages ("'dev.tsv', line 3, row 2"), and its cells
        by column. Empty lines are skipped.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The header lacks a column or has one twice; a row has not as many
            cells as the header; a quotation mark opens a cell and nothing closes it, or
            the next one does, lines later; there are NUL bytes, a byte order mark
            before another line than the first, or an encoding other than UTF-8. The
            message names the file and the line.

    Example:

    ```python
    for place, cells in read_tsv("mmbench_dev_20230712.tsv", ["index", "question"]):
        ...
    ```
    """
    with open_text(path, newline="") as file, _cells_of_any_size():
        rows = _rows(_checked_lines(file, path), path)
        number, header = next(rows, (1, []))
        _check_header(header, columns, f"{os.fspath(path)!r}, line {number}")
        table = []
        for count, (number, cells) in enumerate(rows, 1):
            place = f"{os.fspath(path)!r}, line {number}, row {count}"
            _check_row(cells, header, place)
            table.append((place, dict(zip(header, cells, strict=True))))
    return table


@contextlib.contextmanager
def _cells_of_any_size():
    limit = csv.field_size_limit(2**31 - 1)  # An image is longer than the default.
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _checked_lines(lines: Iterable[str], path) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        # A mark within a cell is a character like others; two files joined have one
        # at the beginning of a line.
        if "\0" in line or line.startswith("\ufeff"):
            raise ValueError(
                f"{os.fspath(path)!r}, line {number}: holds a NUL byte, or begins with "
                "a byte order mark. It must be one text file in UTF-8. "
                f"Received: {line[:80]!r}"
            )
        yield line


def _rows(lines, path) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not empty, each with the number of its first line."""
    # Strict: a mark that is still open at the end is an error.
    reader = csv.reader(lines, delimiter="\t", strict=True)
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(
                f"{os.fspath(path)!r}, line {number}: its row cannot be read. A cell "
                "that begins with a quotation mark must end with one, and those within "
                f"must be doubled ({error})"
            ) from error
        if cells:
            yield number, cells


def _check_header(header, columns, place):
    for column in columns:
        if column not in header:
            raise ValueError(
                f"{place}: the header needs the column {column!r}. Received: {header}"
            )
    twice = [column for column in header if header.count(column) > 1]
    if twice:
        raise ValueError(
            f"{place}: the header has the column {twice[0]!r} twice, of which one is "
            f"lost. Received: {header}"
        )


def _check_row(cells, header, place):
    # First, since it explains a wrong number of cells.
    for cell in cells:
        fragments = re.split(r"[\r\n]+", cell)
        tabs = max(fragment.count("\t") for fragment in fragments)
        if len(fragments) > 1 and tabs >= max(len(header) - 1, 2):
            raise ValueError(
                f"{place}: one of its cells holds a whole line of the table: a "
                "quotation mark opens it, and the next one closes it, lines later. "
                f"Double the marks, and put the cell in marks. Received: {cell[:80]!r}"
            )
    if len(cells) != len(header):
        raise ValueError(
            f"{place}: must have as many cells as the header. Received: {len(cells)} "
            f"cells where the header has {len(header)}, the first being {cells[0]!r}"
        )
