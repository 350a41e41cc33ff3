"""Finds the images of a row, and those that would be lost as no loader reads them.

A record whose image is not read is trained as text alone, and nothing else would show
it. So a key that is not read and looks like an image is an error.
"""

import os
import re
import reprlib
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from keras_betakd.data.batches import record_error
from keras_betakd.data.image_marks import is_by_name
from keras_betakd.data.image_sources import image_cells

IMAGE_KEYS = ("images", "image")

OTHER_IMAGE_KEYS = ("file_name", "filename", "media")
"""Keys that hold images elsewhere, though no word of `_WORDS` is in them."""

IMAGE_ENDINGS = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "bmp", "dib", "gif", "tif"),
    *("tiff", "avif", "avifs", "mpo", "ppm", "pgm", "pbm", "pnm", "pfm", "jp2", "j2k"),
    *("jpc", "jpf", "jpx", "j2c", "qoi", "ico", "tga", "icb", "vda", "vst"),
)
"""The endings of the files that `load_image` reads, in small letters."""

UNREAD_ENDINGS = (
    *("heic", "heif", "jxl", "svg", "psd", "exr", "dng", "hdr", "npy", "npz", "pt"),
    *("pth",),
)
"""The endings of files that hold images, or arrays of them, and cannot be read."""

_WORDS = ("image", "img", "picture", "photo", "pixel")
_ENDING = re.compile(
    rf"\S+\.({'|'.join((*IMAGE_ENDINGS, 'heic', 'heif', 'jxl', 'svg', 'psd'))})"
    r"([?#]\S*)?",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\s*([+-]?\d+(\.\d*)?|true|false|yes|no)\s*", re.IGNORECASE)


def images_of(
    record_id: str,
    row: Mapping,
    image_column: str | None = None,
    read: Collection[str | None] = (),
    is_seeing: bool = False,
) -> list | Mapping:
    """Returns the images of a row as a list, or by their marks.

    Args:
        record_id: The record's id, for errors.
        row: The row.
        image_column: The key of the images; `None` for "images" or "image".
        read: The keys that are read for something else.
        is_seeing: Whether the record has an image that is not under a key of its own.

    Raises:
        ValueError: They are under two keys, or one is under a key that is not read.

    Example:

    >>> images_of("7", {"image": "a.png", "image_width": 640})
    ['a.png']
    """
    keys = IMAGE_KEYS if image_column is None else (image_column,)
    found = {key: row[key] for key in keys if image_cells(row.get(key))}
    if len(found) > 1:
        message = "images must be under one key; name it with `image_column`."
        raise record_error(record_id, message, f"both of {sorted(found)}")
    others = {k: v for k, v in row.items() if k not in read and k not in keys}
    if found:
        ((key, value),) = found.items()
        others = {k: v for k, v in others.items() if v is not value}
        _expect_no_other(record_id, key, others, image_column is not None)
        return value if is_by_name(value) else image_cells(value)
    if is_seeing:
        _expect_no_other(record_id, "image", others, False)
    else:
        expect_no_lost_image(record_id, others)
    return []


def expect_no_lost_image(record_id: str, unread: Mapping) -> None:
    """Raises a `ValueError` if an entry that is not read looks like an image.

    Example:

    >>> expect_no_lost_image("7", {"num_images": 0, "source": "web"})
    """
    lost = next((k for k, v in unread.items() if looks_like_image(k, v)), None)
    if lost is not None:
        raise record_error(
            record_id,
            f"the key {lost!r} is not read. If it holds the images, rename it to "
            f"'image', or `load_chat`, `load_vqa` and `load_captions` read it by "
            f"image_column={lost!r}; otherwise take it away, or the record would "
            "be trained blind.",
            f"{lost}={reprlib.repr(unread[lost])}",
        )


def _expect_no_other(record_id, key, others, is_named):
    """Raises if there is another image beside the one that is read.

    Who names a column has chosen it among other pictures, but not among the numbered
    ones of one record.
    """
    sibling = re.compile(rf"{re.escape(_base(key))}s?[ _-]?\d+", re.IGNORECASE)
    for other, content in others.items():
        is_sibling = isinstance(other, str) and sibling.fullmatch(other)
        is_lost = is_sibling and looks_like_image(other, content)
        if is_lost or not is_named and _is_picture(other, content):
            raise record_error(
                record_id,
                f"the image under {other!r} is not read and would be lost, as there is "
                "another one that is read. Put all of them into a list under 'images', "
                f"or take {other!r} away.",
                f"{other}={reprlib.repr(content)}",
            )


def _base(key):
    """A key in small letters, without the number or the s at its end."""
    return re.sub(r"s?[ _-]?\d*$", "", key.lower())


def looks_like_image(key: Any, value: Any) -> bool:
    """Whether an entry of a row looks like an image, by its key or its value.

    Example:

    >>> looks_like_image("Image", "7"), looks_like_image("file", "a.png")
    (True, True)
    >>> looks_like_image("image_width", 640), looks_like_image("answer", "a cat")
    (False, False)
    """
    if is_empty(value):
        return False
    by_name = isinstance(key, str) and _is_image_name(key)
    return by_name and not _is_measure(key, value) or _is_image_value(value)


def is_empty(value: Any) -> bool:
    """Whether a value says nothing: `None`, an empty text, or a list or dict of them.

    Example:

    >>> is_empty([None, ""]), is_empty(0)
    (True, False)
    """
    if isinstance(value, (list, tuple)):
        return all(map(is_empty, value))
    if isinstance(value, Mapping):
        return all(map(is_empty, value.values()))
    return value is None or isinstance(value, str) and not value.strip()


@lru_cache(maxsize=4096)
def _is_image_name(key):
    name = key.lower()
    return name in OTHER_IMAGE_KEYS or any(word in name for word in _WORDS)


def _is_measure(key, value):
    """Whether a value is of numbers that say something about an image."""
    if isinstance(value, str):  # CSV has numbers as texts.
        is_name = key.lower().endswith("id") or _base(key) in _WORDS  # of a file
        return not is_name and bool(_NUMBER.fullmatch(value))
    if isinstance(value, Mapping):
        return all(_is_measure(key, one) for one in value.values())
    if isinstance(value, np.ndarray) and value.ndim == 1:
        value = value.tolist()
    if isinstance(value, (list, tuple)):  # Sizes, but not the rows of pixels.
        return all(isinstance(one, (int, float, np.number)) for one in value)
    return isinstance(value, (int, float, np.number, np.bool_))


def _is_image_value(value):
    value = _first(value)
    if isinstance(value, Mapping):
        path = value.get("path")
        return _has_bytes(value) or isinstance(path, str) and bool(path.strip())
    if isinstance(value, os.PathLike):
        value = str(value)
    if isinstance(value, str):
        is_data = value[:11].lower() == "data:image/"
        return is_data or _ENDING.fullmatch(value) is not None
    return _is_file(value) or _is_pillow(value)


def _is_picture(key, value):
    """Whether a value is plainly a picture, whatever else the row has."""
    value = _first(value)
    if isinstance(value, Mapping):
        return _has_bytes(value)
    if _is_file(value):
        name = str(key).lower()
        is_named = _is_image_name(name) or name.split(".")[-1] in IMAGE_ENDINGS
        return is_named or getattr(value, "is_dict", False)
    return _is_pillow(value)


def _first(value):
    """The first entry of a list that holds something; entries are of one kind."""
    if isinstance(value, np.ndarray) and value.dtype == object:
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return next((one for one in value if not is_empty(one)), None)
    return value


def _has_bytes(cell):
    return _is_file(cell.get("bytes"))


def _is_file(value):
    # Those of a table have no bytes before they are needed, and are no plain `bytes`.
    is_bytes = isinstance(value, (bytes, bytearray, memoryview))
    return is_bytes and (len(value) > 0 or type(value) is not bytes)


def _is_pillow(value):
    return type(value).__module__.startswith("PIL.")
