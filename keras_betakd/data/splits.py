"""Finds out whether files are of one split of a data set, as their names say."""

import os
import re
from collections.abc import Sequence
from typing import Any

_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
}


def expect_one_split(where: Any, files: Sequence[str]) -> None:
    """Raises a `ValueError` if files are of several splits, as their names say.

    Those of a test would be trained.

    Args:
        where: The folder or the pattern of the files.
        files: Their paths.

    Example:

    >>> expect_one_split("data", ["data/train-0.parquet", "data/train-1.parquet"])
    """
    found: dict[str, str] = {}
    for file in files:
        words = re.split(r"[^a-z]+", os.path.basename(file).lower())
        split = next((_SPLITS[word] for word in words if word in _SPLITS), None)
        if split is not None:
            found.setdefault(split, os.path.basename(file))
    if len(found) > 1:
        names = ", ".join(f"{split} ({name!r})" for split, name in found.items())
        raise ValueError(
            "The files of a folder must be of one split, or those of a test would be "
            "trained; give the files of one, or a pattern of them as in "
            f"'folder/train-*.parquet'. Received: {names} in "
            f"{os.fspath(where)!r}"
        )
