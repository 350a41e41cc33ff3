"""Reads JSON, jsonl and text with the file named in errors; writes files atomically."""

import contextlib
import json
import os
import pathlib


@contextlib.contextmanager
def open_text(path: str | os.PathLike, newline: str | None = None):
    """Opens a UTF-8 file for reading, with or without byte order mark.

    Args:
        path: The file.
        newline: As for `open`.

    Yields:
        The open file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not in UTF-8. The message names the file.

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


def read_json(path: str | os.PathLike):
    """Reads a JSON file and returns its value.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It does not hold JSON. The message names the file.

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


def read_jsonl(path: str | os.PathLike) -> list[dict]:
    """Reads a file of one JSON object a line; blank lines are skipped.

    Returns:
        The objects, in the order of the lines.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line does not hold a JSON object, or the file is not in UTF-8. The
            message names the file and the line.

    Example:

    ```python
    answers = llava_answers(read_jsonl("answers.jsonl"))
    ```
    """
    objects = []
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                objects.append(
                    _json_object(line, f"{os.fspath(path)!r}, line {number}")
                )
    return objects


def _json_object(line, where):
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where}: must be a JSON object. Received: {line.strip()!r}")
    return value


@contextlib.contextmanager
def atomic_write(path, advice="Make room, or the folder writable.", size=0):
    """Replaces a file only once the new one is complete.

    It yields the path of a temporary file in the same folder, which then replaces
    `path`. A kill, a crash or a full disk leaves `path` as it was.

    Args:
        path: The file to write.
        advice: The end of the error message: what to do if it cannot be written.
        size: Bytes that must be free; where the system can, they are reserved before
            anything is written. HDF5 ends the process on a disk that becomes full.

    Yields:
        `pathlib.Path` of the temporary file, which must be written within.

    Raises:
        OSError: The file cannot be written. The message names it.

    Example:

    ```python
    with atomic_write("output/report.json") as draft:
        draft.write_text("{}")
    ```
    """
    path = pathlib.Path(path)
    draft = path.with_name(f".part.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if size and hasattr(os, "posix_fallocate"):
            with open(draft, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)
        yield draft
        with open(draft, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(draft, path)
    # h5py raises RuntimeError if a file cannot be closed.
    except (OSError, RuntimeError) as error:
        _remove(draft)
        needed = f" ({size:,} bytes)" if size else ""
        raise OSError(
            getattr(error, "errno", None) or 0,
            f"'{path}'{needed} cannot be written: {error}. What stood there before is "
            f"untouched. {advice}",
        ) from error
    except BaseException:
        _remove(draft)
        raise


def _remove(path):
    with contextlib.suppress(OSError):
        path.unlink()
