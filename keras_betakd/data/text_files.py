"""Opening text files, with the file named if it is none."""

import contextlib
import os


@contextlib.contextmanager
def open_text(path: str | os.PathLike, newline: str | None = None):
    """Opens a UTF-8 file for reading, with or without byte order mark.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not in UTF-8.

    Example:

    ```python
    with open_text("answers.jsonl") as file:
        lines = list(file)
    ```
    """
    with open(path, encoding="utf-8-sig", newline=newline) as file:
        try:
            yield file
        except UnicodeDecodeError as error:
            raise ValueError(
                f"Not a text file in UTF-8: {os.fspath(path)!r} ({error})"
            ) from error
