"""Reads rows with images from Hugging Face datasets."""

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from keras_betakd.data.narrow_floats import feature_types, shortened

COLUMN_ADVICE = (
    "Say what they are called with `image_column`, `question_column`, `answer_column`, "
    "`id_column`, or another argument of the loader."
)


def table_rows(
    source: Any, columns: Sequence[str], advice: str = COLUMN_ADVICE
) -> Iterator[dict]:
    """Returns the rows of a table, whose image files are read when a batch needs them.

    Args:
        source: An object with `column_names` and rows by index, as a
            `datasets.Dataset`.
        columns: The names of the columns that are needed. They are checked before any
            row is read.
        advice: As for `expect_columns`.

    Returns:
        The rows as dicts.

    Raises:
        ValueError: A column is missing, hidden by the table's format, or there twice.

    Example:

    ```python
    rows = table_rows(dataset, ["image", "question"])
    ```
    """
    expect_columns("The table", source.column_names, columns, advice)
    _expect_none_hidden(source)
    table = undecoded(source)
    rows = (_with_stored_images(table, number) for number in range(len(table)))
    return shortened(rows, feature_types(table))


def is_table(source: Any) -> bool:
    """Whether `source` has named columns and rows by index, as `datasets.Dataset`."""
    # A `DatasetDict` has these too, and is several tables.
    names = ("column_names", "__getitem__", "__len__")
    return not isinstance(source, Mapping) and all(hasattr(source, n) for n in names)


def expect_columns(
    where: str,
    present: Iterable[str],
    columns: Collection[str],
    advice: str = COLUMN_ADVICE,
) -> None:
    """Raises a `ValueError` if one of the columns is missing, or there twice.

    Args:
        where: The name of the table or row, for the message.
        present: The names of the columns that the table or row has.
        columns: The names of the columns that are needed.
        advice: What to do about one that is missing, as a sentence.

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
            f"{where} lacks the columns {lacking}. {advice} "
            f"Received: {sorted(map(str, present))}"
        )


def _expect_none_hidden(table):
    """Raises for columns that `with_format` hides: images in them would be lost."""
    form = getattr(table, "format", None)
    shown = form.get("columns") if isinstance(form, dict) else None
    hidden = [] if shown is None else sorted(set(table.column_names) - set(shown))
    if hidden:
        raise ValueError(
            "The table's format hides columns: show them by `dataset.with_format(None)`"
            ", or take them away by `dataset.remove_columns`. Received: "
            f"{hidden} hidden"
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
            is_dict = isinstance(cell, dict)
            row[column] = _StoredImage.of(table, number, column, is_dict)
        elif isinstance(cell, list) and any(_file_of(c) is not None for c in cell):
            row[column] = [
                one
                if _file_of(one) is None
                else _StoredImage.of(table, number, column, isinstance(one, dict), i)
                for i, one in enumerate(cell)
            ]
    return row


def _file_of(cell):
    """Returns the bytes of the image file in a cell; `None` if it holds none."""
    cell = cell.get("bytes") if isinstance(cell, dict) else cell
    return cell if isinstance(cell, bytes) else None


class _StoredImage(bytes):
    """The bytes of an image file in a table, read from the table by `bytes(...)`.

    `load_image` does this when a batch needs the image; until then it uses no memory.
    `is_dict` says whether the cell is a dict, as of an image, or bytes of any kind.
    """

    @classmethod
    def of(cls, table, number, column, is_dict, index=None):
        stored = cls()
        stored.place = table, number, column, index
        stored.is_dict = is_dict
        return stored

    def __bytes__(self):
        table, number, column, index = self.place
        cell = table[number][column]
        return _file_of(cell if index is None else cell[index])
