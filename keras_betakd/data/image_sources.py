"""Brings the images of records into forms that `load_image` reads, unread."""

import os
import reprlib
from typing import Any

import numpy as np

from keras_betakd.data.batches import naming, record_error
from keras_betakd.data.image_places import local_place
from keras_betakd.data.images import check_image_path
from keras_betakd.folders import inside


def expect_folder(image_folder: str | os.PathLike | None) -> None:
    """Raises a `FileNotFoundError` if `image_folder` is neither a folder nor `None`."""
    if image_folder is not None and not os.path.isdir(image_folder):
        raise FileNotFoundError(
            "`image_folder` must be a folder that exists. "
            f"Received: {os.fspath(image_folder)!r}"
        )


def image_cells(value: Any) -> list:
    """Returns the images of a cell as a list; `None`, `""`, `[None]`, `[""]` are none.

    Example:

    >>> image_cells("a.png"), image_cells([""])
    (['a.png'], [])
    """
    cells = list(value) if isinstance(value, (list, tuple)) else [value]
    return [] if all(is_no_image(cell) for cell in cells) else cells


def is_no_image(cell: Any) -> bool:
    """Whether a cell stands for no image: `None`, or an empty text as files have it."""
    return cell is None or isinstance(cell, str) and not cell.strip()


def image_source(
    record_id: str, image: Any, image_folder: str | os.PathLike | None
) -> Any:
    """Returns the source that `load_image` reads; a path is joined to the folder.

    Args:
        record_id: The record's id, for errors.
        image: A path, a `file:` or `data:` address, bytes, a dict with `"bytes"` and
            `"path"`, a Pillow image or an array.
        image_folder: The folder that paths must not leave; `None` for any place.

    Raises:
        ValueError: It is none of these, or leads out of the folder.
    """
    is_path = True
    if isinstance(image, dict):
        is_path = image.get("bytes") is None
        image = image.get("path" if is_path else "bytes")
    if is_path and isinstance(image, (str, os.PathLike)):
        return _place(record_id, os.fspath(image), image_folder)
    if isinstance(image, (bytes, bytearray, memoryview, np.ndarray)):
        return image
    from PIL import Image

    if isinstance(image, Image.Image):
        return image
    message = (
        "an image must be a path or the bytes of a file, a Pillow image or an array."
    )
    raise record_error(record_id, message, reprlib.repr(image))


def _place(record_id, text, folder):
    with naming(record_id):
        place = local_place(text)
    if folder is None or isinstance(place, bytes):
        return place
    if place != text:  # A `file:` address is absolute: it may lie in the folder.
        place = os.path.relpath(place, folder)
    try:
        return str(inside(folder, os.path.normpath(place)))
    except ValueError as error:
        raise record_error(
            record_id,
            "an image path must stay inside `image_folder`; correct it, or pass "
            f"image_folder=None to use paths as they are. {error}",
            repr(text),
        ) from error


def check_images_exist(record: Any) -> None:
    """Raises if an image file of a record is missing; the message names the id."""
    with naming(record.id):
        for source in record.images:
            if isinstance(source, str):
                check_image_path(source)
