"""Reads JSON and jsonl files in LLaVA's training format to records."""

import functools
import json
import os
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from keras_betakd.data.batches import (
    Records,
    expect_on_error,
    naming,
    record_error,
    usable_records,
)
from keras_betakd.data.images import check_image_path
from keras_betakd.data.llava_records import LlavaRecord
from keras_betakd.files import unique_keys
from keras_betakd.folders import inside

HUMAN = ("human", "user")
ASSISTANT = ("gpt", "assistant")
_OTHER_MEDIA = ("images", "video")


def load_llava(
    path: str | os.PathLike | list[dict],
    image_folder: str | os.PathLike | None = None,
    on_error: str = "raise",
) -> Records:
    """Loads training data in LLaVA's format.

    A record is a dict with `"conversations"`, a list of `{"from": ..., "value": ...}`
    in which "human" (or "user") and "gpt" (or "assistant") take turns, and with
    optional `"id"` and `"image"`: a path, a list of paths, or none for text alone.
    In a list of records, `"image"` may be whatever `load_image` reads.

    As in LLaVA's trainers, a first turn of "gpt" is left out. Image marks are treated
    as described for `LlavaRecord`. A record without id gets its index as id. Public
    data sets repeat ids, so the second record "x" gets the id "x#2", and so on.

    All records are checked here, before training starts. The files of images must
    exist; they are decoded only when a batch needs them.

    Args:
        path: A UTF-8 file, with or without byte order mark, that holds a JSON list
            of records or one record a line (jsonl), whatever its name; or a list of
            records.
        image_folder: The folder that the paths of images are relative to, and must
            not leave. With `None`, paths are used as they are.
        on_error: "raise", or "skip" to leave out the records that cannot be used: one
            warning counts them, and `skipped` holds the id and the reason of each.

    Returns:
        `LlavaRecord`s as a read-only sequence, in the file's order.

    Raises:
        FileNotFoundError: The file, the folder or (unless skipped) an image is
            missing; the message then names the record's id and the path.
        ValueError: `on_error` has another value, the file is not in this format, or
            (unless skipped) a record cannot be used, and the message names its id, or
            a jsonl line is no JSON, and the message names its number.
        TypeError: `path` is neither a path nor a list.

    Example:

    >>> turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]
    >>> records = load_llava([{"id": "a", "conversations": turns}])
    >>> records[0].responses
    ('Hello!',)
    """
    expect_on_error(on_error)
    expect_folder(image_folder)
    items = with_unique_ids(read_items(path, on_error), "id")
    read = functools.partial(llava_record, image_folder=image_folder)
    return Records(*usable_records(items, read, on_error))


def expect_folder(image_folder: str | os.PathLike | None) -> None:
    """Raises a `FileNotFoundError` if `image_folder` is neither a folder nor `None`."""
    if image_folder is not None and not os.path.isdir(image_folder):
        raise FileNotFoundError(
            "`image_folder` must be a folder that exists. "
            f"Received: {os.fspath(image_folder)!r}"
        )


def read_items(path: str | os.PathLike | list[dict], on_error: str) -> list:
    """Returns the items of a file in LLaVA's format; a list is returned as it is.

    A jsonl line that is no JSON raises a `ValueError`; with `on_error="skip"` the error
    takes the place of the item. A file without any line of JSON always raises.
    """
    if isinstance(path, (list, tuple)):
        return path
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(
            "`path` must be the path of a JSON or jsonl file, or a list of records. "
            f"Received: {type(path).__name__}"
        )
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"There is no file of LLaVA records at this path: {os.fspath(path)!r}"
        )
    try:
        # Takes the byte order mark away, where there is one.
        with open(path, encoding="utf-8-sig") as file:
            text = file.read()
        if re.match(r"\s*\[", text):
            return json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise _file_error(path, error) from error
    # Not `splitlines`: it also splits at signs that JSON allows inside a string.
    items = [
        _parse_line(path, number, line)
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]
    damaged = [item for item in items if isinstance(item, ValueError)]
    if damaged and (on_error == "raise" or len(damaged) == len(items)):
        raise damaged[0]
    return items


def _parse_line(path, number, line):
    try:
        return json.loads(line, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        return _file_error(path, f"file line {number}: {error}")


def _file_error(path, reason):
    return ValueError(
        "A file of LLaVA records must be UTF-8 and hold a JSON list, or one JSON "
        f"record a line. Received: {os.fspath(path)!r} ({reason})"
    )


def with_unique_ids(items: Iterable, key: str | None) -> Iterator[tuple[str, Any]]:
    """Pairs each item with an id that is unique among the items.

    Args:
        items: Mappings with their ids, strings or integers, under `key`. A mapping
            without id gets its index as id. An item that is no mapping, or whose id is
            of another type, cannot become a record: it gets its index, too, but does
            not take that id from another item.
        key: The key of the ids; `None` to use the index of every item.

    Returns:
        The pairs. The second item with the id "x" gets "x#2", and so on.

    Example:

    >>> [name for name, _ in with_unique_ids([{"id": 7}, {}, {"id": "7"}], "id")]
    ['7', '1', '7#2']
    """
    counts = {}
    for index, item in enumerate(items):
        is_mapping = isinstance(item, Mapping)
        own_id = item.get(key) if is_mapping and key is not None else None
        if not is_mapping or not _is_id_or_none(own_id):
            yield str(index), item
            continue
        own_id = unique = str(index if own_id is None else own_id)
        while unique in counts:
            counts[own_id] += 1
            unique = f"{own_id}#{counts[own_id]}"
        counts[unique] = 1
        yield unique, item


def _is_id_or_none(value):
    return isinstance(value, (str, int, type(None))) and not isinstance(value, bool)


def llava_record(
    record_id: str, item: dict, image_folder: str | os.PathLike | None
) -> LlavaRecord:
    """Returns the record of an item in LLaVA's format; its image files must exist.

    Raises:
        FileNotFoundError: An image is missing; the message names the id.
        ValueError: The item is not in the format; the message names the id.
    """
    _check_item(record_id, item)
    images = item.get("image")
    if images is None:
        images = ()
    elif not isinstance(images, (list, tuple)):
        images = (images,)
    texts = _texts(record_id, item)
    record = LlavaRecord(
        id=record_id,
        prompts=texts[::2],
        responses=texts[1::2],
        images=[_source(record_id, image, image_folder) for image in images],
    )
    _check_images_exist(record)
    return record


def _check_item(record_id, item):
    if not isinstance(item, dict):
        message = "a record must be a dict with the key 'conversations'."
        raise record_error(record_id, message, reprlib.repr(item))
    own_id = item.get("id")
    if not _is_id_or_none(own_id):
        message = "`id` must be a string or an integer; leave it out to get the index."
        raise record_error(record_id, message, reprlib.repr(own_id))
    for key in _OTHER_MEDIA:
        if item.get(key):
            message = f"images belong under the key 'image', {key!r} is not read."
            raise record_error(record_id, message, reprlib.repr(item[key]))


def _texts(record_id, item):
    """Returns the texts of a conversation: human, gpt, human, gpt, ..."""
    turns = item.get("conversations")
    if not isinstance(turns, (list, tuple)):
        message = "the key 'conversations' must hold a list of turns."
        raise record_error(record_id, message, reprlib.repr(turns))
    for number, turn in enumerate(turns):
        _check_turn(record_id, number, turn)
    if turns and turns[0]["from"] in ASSISTANT:
        turns = turns[1:]
    for number, turn in enumerate(turns):
        if turn["from"] not in (HUMAN, ASSISTANT)[number % 2]:
            message = "'human' and 'gpt' must take turns."
            speakers = [turn["from"] for turn in turns]
            raise record_error(record_id, message, reprlib.repr(speakers))
    if not turns or len(turns) % 2:
        message = (
            "each human turn needs an answer of 'gpt'; add it or take the turn out."
        )
        raise record_error(record_id, message, f"{len(turns)} turns")
    return [turn["value"] for turn in turns]


def _check_turn(record_id, number, turn):
    if (
        not isinstance(turn, dict)
        or turn.get("from") not in HUMAN + ASSISTANT
        or not isinstance(turn.get("value"), str)
    ):
        raise record_error(
            record_id,
            f"turn {number} must be a dict with 'from', one of {HUMAN + ASSISTANT}, "
            "and 'value', a string.",
            reprlib.repr(turn),
        )


def _source(record_id, image, image_folder):
    """Returns the source that `load_image` reads; a path is joined to the folder."""
    is_path = True
    if isinstance(image, dict):
        is_path = image.get("bytes") is None
        image = image.get("path" if is_path else "bytes")
    if is_path and isinstance(image, (str, os.PathLike)):
        return _path_inside(record_id, os.fspath(image), image_folder)
    if isinstance(image, (bytes, bytearray, memoryview, np.ndarray)):
        return image
    from PIL import Image

    if isinstance(image, Image.Image):
        return image
    message = (
        "an image must be a path or the bytes of a file, a Pillow image or an array."
    )
    raise record_error(record_id, message, reprlib.repr(image))


def _path_inside(record_id, path, folder):
    if folder is None:
        return path
    try:
        return str(inside(folder, os.path.normpath(path)))
    except ValueError as error:
        raise record_error(
            record_id,
            "an image path must stay inside `image_folder`; correct it, or pass "
            f"image_folder=None to use paths as they are. {error}",
            repr(path),
        ) from error


def _check_images_exist(record):
    with naming(record.id):
        for source in record.images:
            if isinstance(source, str):
                check_image_path(source)
