"""Reads JSON, jsonl and text with the file named in errors; writes files atomically.

Atomic writes: a file is replaced only once the new one is complete.
"""

import contextlib
import json
import os
import pathlib


@contextlib.contextmanager
def atomic_write(path, advice="Make room, or the folder writable.", size=0):
    """A name to write to, whose file takes the place of `path` once it is complete.

    A kill, a crash or a full disk leaves `path` as it was.

    Args:
        path: file to write.
        advice: what to do where it cannot be written, for the message.
        size: bytes that must be free before anything is written. HDF5 does not survive
            a disk that runs full: it ends the process.

    Raises:
        OSError: it cannot be written; the message names it.
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
    # h5py has a RuntimeError where a file cannot be closed.
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


def read_jsonl(path: str | os.PathLike) -> list[dict]:
    """The objects in a file of one JSON object a line; blank lines are skipped.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line holds no JSON object, or the file no text. The message says
            which.

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
