"""Reads JSON, jsonl and text with the file named in errors; writes files atomically."""

import contextlib
import hashlib
import json
import os
import pathlib
import secrets
import socket
from collections.abc import Sized


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
        ValueError: It does not hold JSON, or a key stands twice in an object, where one
            value would be lost. The message names the file.

    Example:

    ```python
    read_json("testdev_balanced_questions.json")
    ```
    """
    with open(path, encoding="utf-8-sig") as file:
        try:
            return json.load(file, object_pairs_hook=unique_keys)
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
        ValueError: A line does not hold a JSON object, a key stands twice in it, or the
            file is not in UTF-8. The message names the file and the line.

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
        value = json.loads(line, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where}: must be a JSON object. Received: {line.strip()!r}")
    return value


def expect_entries(path: str | os.PathLike, entries: Sized, what: str = "records"):
    """Returns what was read of a file, if it is anything.

    Args:
        path: The file.
        entries: What was read.
        what: What there must be in it, in the plural, for the message.

    Raises:
        ValueError: There is nothing; the message names the file.

    Example:

    >>> expect_entries("answers.jsonl", [{"id": 1}])
    [{'id': 1}]
    """
    if not entries:
        raise ValueError(
            f"{os.fspath(path)!r} holds no {what}: a download or an export may have "
            f"stopped at its beginning. Received: {os.path.getsize(path)} bytes"
        )
    return entries


def unique_keys(pairs: list[tuple[str, object]]) -> dict:
    """Returns a JSON object as a dict; for `object_pairs_hook` of `json.loads`.

    Raises:
        ValueError: A key stands twice, where one value would be lost.

    Example:

    >>> json.loads('{"a": 1}', object_pairs_hook=unique_keys)
    {'a': 1}
    """
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return value


def digest_of_file(path: str | os.PathLike) -> str:
    """Returns the SHA-256 of a file's bytes in hexadecimal.

    Example:

    ```python
    digest_of_file("model.weights.h5")
    ```
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def atomic_write(path, advice="Make room, or the folder writable.", size=0):
    """Replaces a file only once the new one is complete.

    It yields the path of a temporary file in the same folder, which then replaces
    `path`. A kill, a crash or a full disk leaves `path` as it was. Each writer has a
    temporary file of its own, so of several at a time the last to end is what stands
    there, whole. What a killed writer has left is removed by the next one.

    Args:
        path: The file to write.
        advice: The end of the error message: what to do if it cannot be written.
        size: Bytes that must be free; where the system can, they are reserved before
            anything is written. HDF5 ends the process on a disk that becomes full.

    Yields:
        `pathlib.Path` of the temporary file, which must be written within. It exists
        already, is empty and ends in the name of `path`.

    Raises:
        OSError: The file cannot be written. The message names it.

    Example:

    ```python
    with atomic_write("output/report.json") as draft:
        draft.write_text("{}")
    ```
    """
    path = pathlib.Path(path)
    draft = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_drafts_of_killed(path)
        draft = _new_draft(path, size)
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


def _draft_prefix(process):
    # No dot: the parts of a draft's name are split at dots.
    host = socket.gethostname().replace(".", "-")
    return f".part.{host}.{process}."


def _new_draft(path, size):
    """An empty file beside `path` that nobody else writes, with `size` bytes free."""
    name = f"{_draft_prefix(os.getpid())}{secrets.token_hex(4)}.{path.name}"
    draft = path.with_name(name)
    # O_EXCL: neither another writer's file nor a link of that name is opened.
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        if size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
    except OSError:
        _remove(draft)
        raise
    finally:
        os.close(descriptor)
    return draft


def _remove_drafts_of_killed(path):
    """Removes drafts of `path` by processes of this machine that have ended."""
    prefix = _draft_prefix("")[:-1]
    for draft in path.parent.glob(".part.*"):
        if not draft.name.startswith(prefix) or not draft.name.endswith(path.name):
            continue
        process, _, name = draft.name.removeprefix(prefix).split(".", 2)
        if name == path.name and process.isdigit() and not _runs(int(process)):
            _remove(draft)


def _runs(process):
    if os.name == "nt":  # there, signal 0 is Ctrl-C
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it runs, for another user
        return True
    return True


def _remove(path):
    with contextlib.suppress(OSError):
        if path is not None:
            path.unlink()
