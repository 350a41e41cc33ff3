"""Loads conversations in LLaVA's training format to records."""

import os
import reprlib
from collections.abc import Mapping
from typing import Any

from keras_betakd.data.batches import Records, expect_on_error, record_error
from keras_betakd.data.chat_shapes import chat_of
from keras_betakd.data.llava_records import LlavaRecord
from keras_betakd.data.loading import RecordMaker, expect_id, loaded
from keras_betakd.data.streams import RecordStream


def load_llava(
    path: Any,
    image_folder: str | os.PathLike | None = None,
    on_error: str = "raise",
) -> Records | RecordStream:
    """Loads training data in LLaVA's format; `load_chat` reads all others.

    A record is a dict with `"conversations"`, a list of `{"from": ..., "value": ...}`
    in which "human" (or "user") and "gpt" (or "assistant") take turns, and with
    optional `"id"` and `"image"`: a path, a list of paths, or none (`None`, `""`, `[]`)
    for text alone. In a list of records, `"image"` may be whatever `load_image` reads.
    A first turn of "system", or the key `"system"`, is kept as the record's `system`.

    As in LLaVA's trainers, a first turn of "gpt" is left out. Image marks are treated
    as described for `LlavaRecord`. A record without id gets its index as id. Public
    data sets repeat ids, so the second record "x" gets the id "x#2", and so on.

    All records are checked here, before training starts. The files of images must
    exist; they are decoded only when a batch needs them.

    Args:
        path: A UTF-8 file, with or without byte order mark, that holds a JSON list
            of records or one record a line (jsonl); a list of records; or another
            source that `load_chat` takes.
        image_folder: The folder that the paths of images are relative to, and must
            not leave. With `None`, paths are used as they are.
        on_error: "raise", or "skip" to leave out the records that cannot be used: one
            warning counts them, and `skipped` holds the id and the reason of each.

    Returns:
        `LlavaRecord`s as a read-only sequence, in the file's order. Of a stream, a
        `RecordStream`.

    Raises:
        FileNotFoundError: The file, the folder or (unless skipped) an image is
            missing; the message then names the record's id and the path.
        ValueError: `on_error` has another value, the file is not in this format; some
            records have image marks, but none an image; or (unless skipped) a record
            cannot be used, and the message names its id, or a jsonl line is no JSON,
            and the message names its number.
        TypeError: `path` is neither a path nor a list or another source.

    Example:

    >>> turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]
    >>> records = load_llava([{"id": "a", "conversations": turns}])
    >>> records[0].responses
    ('Hello!',)
    """
    expect_on_error(on_error)
    maker = RecordMaker(image_folder)

    def read(record_id, item):
        return llava_record(record_id, item, maker)

    return loaded(path, maker, read, on_error, "id")


def llava_record(record_id: str, item: Any, maker: RecordMaker) -> LlavaRecord:
    """Returns the record of an item in LLaVA's format; its image files must exist.

    Raises:
        FileNotFoundError: An image is missing; the message names the id.
        ValueError: The item is not in the format; the message names the id.
    """
    if not isinstance(item, Mapping):
        message = "a record must be a dict with the key 'conversations'."
        raise record_error(record_id, message, reprlib.repr(item))
    expect_id(record_id, item.get("id"), "id")
    if item.get("conversations") is None:
        raise record_error(
            record_id,
            "the key 'conversations' must hold a list of turns; `load_chat` reads "
            "'messages' and other forms.",
            f"keys {reprlib.repr(sorted(map(str, item)))}",
        )
    if item.get("images"):
        message = "images belong under the key 'image'; `load_chat` reads 'images' too."
        raise record_error(record_id, message, reprlib.repr(item["images"]))
    return maker.record(record_id, chat_of(record_id, item, "conversations"))
