"""Reading JSON files, with the file named in every error."""

import json
import os


def read_json(path: str | os.PathLike):
    """The value in a JSON file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds no JSON.

    Example:

    ```python
    read_json("testdev_balanced_questions.json")
    ```
    """
    with open(path, encoding="utf-8-sig") as file:
        try:
            return json.load(file)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"Not a JSON file: {os.fspath(path)!r} ({error})"
            ) from error
