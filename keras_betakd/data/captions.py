"""Loads images with captions: COCO's files, tables, image folders and tar files.

{"image": "1.jpg", "caption": "A red car."}
"""

import os
import pathlib
import reprlib
from collections.abc import Mapping
from typing import Any

from keras_betakd.data.batches import Records, expect_on_error, record_error
from keras_betakd.data.chat_shapes import expect_no_media
from keras_betakd.data.image_keys import IMAGE_KEYS, images_of
from keras_betakd.data.images import IMAGE_MARK, expect_no_mark, neutralize_image_marks
from keras_betakd.data.loading import RecordMaker, loaded
from keras_betakd.data.row_files import json_rows
from keras_betakd.data.sources import RowStream, rows_of
from keras_betakd.data.streams import RecordStream
from keras_betakd.data.vqa import question_chat
from keras_betakd.files import expect_entries, read_json

CAPTION_COLUMNS = ("caption", "captions", "text", "txt")
"""Where captions are, if no column is named."""

METADATA = ("metadata.jsonl", "metadata.csv")
"""The file of an image folder in which Hugging Face's `imagefolder` looks."""


def load_captions(
    source: Any,
    image_folder: str | os.PathLike | None = None,
    prompt: str = "",
    image_column: str | None = None,
    caption_column: str | None = None,
    id_column: str | None = None,
    on_error: str = "raise",
) -> Records | RecordStream:
    """Loads images with their captions, as the answers to one prompt.

    Four forms are read: COCO's `captions_train2017.json`, whose images and annotations
    are joined, one record for each caption, with the annotation's id; rows with an
    image and a caption; an image folder whose `metadata.jsonl` or `metadata.csv` has
    `file_name` and a caption; and tar files as WebDataset and img2dataset write them.
    A row with a list of captions makes one record for each.

    Args:
        source: The path of COCO's file, of an image folder with metadata, or of tar
            files; or any source of rows that `load_vqa` takes.
        image_folder: The folder that the paths of images are relative to, and must
            not leave; of an image folder with metadata, that folder by default. With
            `None`, paths are used as they are.
        prompt: What each caption answers, behind the image; by default nothing, as in
            the first stage of LLaVA's training.
        image_column: The column of the images; `None` for "image" or "images".
        caption_column: The column of the captions; `None` for the one of "caption",
            "captions", "text" and "txt" that there is.
        id_column: The column of the ids; `None` for the rows' numbers, from 0.
        on_error: "raise", or "skip" to leave out the records that cannot be used: one
            warning counts them, and `skipped` holds the id and the reason of each.

    Returns:
        `LlavaRecord`s as a read-only sequence, in the rows' order. Of a stream, a
        `RecordStream`.

    Raises:
        FileNotFoundError: A file, the folder or (unless skipped) an image is missing.
        ValueError: `on_error` has another value; `prompt` holds an image mark; a file
            is damaged, a column does not exist; or (unless skipped) a row has no image
            or no caption, and the message names its id.
        TypeError: `source` is of another type.

    Example:

    >>> import numpy as np
    >>> row = {"image": np.zeros((4, 6, 3), "uint8"), "caption": "A black square."}
    >>> (record,) = load_captions([row], prompt="Describe the image.")
    >>> record.prompts, record.responses
    (('<image>\\nDescribe the image.',), ('A black square.',))
    """
    expect_on_error(on_error)
    expect_no_mark("prompt", prompt)
    maker = RecordMaker(image_folder)
    needed = [c for c in (image_column, caption_column, id_column) if c is not None]

    def read(record_id, row):
        if not isinstance(row, Mapping):
            message = "a row must be a dict with an image and a caption."
            raise record_error(record_id, message, reprlib.repr(row))
        expect_no_media(record_id, row)
        read_keys = {caption_column, id_column, *CAPTION_COLUMNS}
        images = images_of(record_id, row, image_column, read_keys)
        caption = _caption(record_id, row, caption_column)
        if len(images) != 1:
            message = f"a caption needs one image, under {image_column or IMAGE_KEYS}."
            received = f"{len(images)} images, keys {sorted(map(str, row))}"
            raise record_error(record_id, message, received)
        if not isinstance(caption, str):  # A number is no caption.
            message = "a caption must be a text."
            raise record_error(record_id, message, reprlib.repr(caption))
        text = (
            f"{IMAGE_MARK}\n{neutralize_image_marks(prompt)}" if prompt else IMAGE_MARK
        )
        return maker.record(
            record_id, question_chat(record_id, images, text, caption, "")
        )

    if isinstance(source, (str, os.PathLike)):
        coco = _coco_rows(source)
        if coco is not None:
            return loaded(coco, maker, read, on_error, id_column or "id", needed)
        if os.path.isdir(source):
            metadata = _metadata_of(source)
            if metadata is not None:
                maker.image_folder = source if image_folder is None else image_folder
                source, image_column = metadata, image_column or "file_name"
                needed = [image_column, *needed]
    rows = rows_of(source, on_error, needed=needed)
    if not isinstance(rows, RowStream):
        rows = [one for row in rows for one in _one_caption_each(row, caption_column)]
    return loaded(rows, maker, read, on_error, id_column, needed)


def _caption(record_id, row, column):
    """The caption of a row, under the named column or a known one."""
    columns = CAPTION_COLUMNS if column is None else (column,)
    found = {c: row[c] for c in columns if row.get(c) is not None}
    values = list(found.values())
    # Files end their texts with a space or a line more or less.
    bare = [v.strip() if isinstance(v, str) else v for v in values]
    if not bare or any(value != bare[0] for value in bare):
        message = f"a row must have one caption, under {' or '.join(columns)}."
        received = f"captions under {sorted(found)}, keys {sorted(map(str, row))}"
        raise record_error(record_id, message, received)
    caption = values[0]
    # A stream keeps one record for each row.
    if isinstance(caption, (list, tuple)) and len(caption) == 1:
        return caption[0]
    return caption


def _one_caption_each(row, column):
    """Rows with one caption each, out of a row with a list of captions."""
    if not isinstance(row, Mapping):
        return [row]
    columns = CAPTION_COLUMNS if column is None else (column,)
    lists = [c for c in columns if isinstance(row.get(c), (list, tuple)) and row[c]]
    if len(lists) != 1:
        return [row]
    return [{**row, lists[0]: caption} for caption in row[lists[0]]]


def _metadata_of(folder):
    """The metadata file of an image folder; `None` if there is none."""
    found = [pathlib.Path(folder, name) for name in METADATA]
    found = [path for path in found if path.is_file()]
    if len(found) > 1:
        raise ValueError(
            f"A folder must have one of {METADATA}; give the path of the one to read. "
            f"Received: both in '{folder}'"
        )
    return found[0] if found else None


def _coco_rows(path):
    """The rows of a file in COCO's form; `None` of other files.

    An annotation whose image is not in the file is a `ValueError` in its place.
    """
    if not os.path.isfile(path) or not os.fspath(path).lower().endswith(".json"):
        return None
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        if file.read(4096).lstrip()[:1] != "{":
            return None
    try:
        value = read_json(path)
    except ValueError:
        json_rows(path, "raise")  # One object a line, or an error of both forms.
        return None
    images, annotations = (value.get(key) for key in ("images", "annotations"))
    if not isinstance(images, list) or not isinstance(annotations, list):
        return None
    expect_entries(path, annotations, "annotations")
    names = {
        image["id"]: image.get("file_name")
        for image in images
        if isinstance(image, dict) and isinstance(image.get("id"), (int, str))
    }
    return [_coco_row(path, n, entry, names) for n, entry in enumerate(annotations)]


def _coco_row(path, number, entry, names):
    image_id = entry.get("image_id") if isinstance(entry, dict) else None
    if not isinstance(image_id, (int, str)) or names.get(image_id) is None:
        return ValueError(
            f"{os.fspath(path)!r}: annotation {number} must have the `image_id` of an "
            f"image with a `file_name`. Received: {reprlib.repr(entry)}"
        )
    return {
        "id": entry.get("id"),
        "image": names[image_id],
        "caption": entry.get("caption"),
    }
