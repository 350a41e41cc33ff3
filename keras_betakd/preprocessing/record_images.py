"""Reads the images of raw records, whatever they are, as uint8 arrays."""

import os
from collections.abc import Mapping

import numpy as np

from keras_betakd.data.images import is_array, load_image
from keras_betakd.data.pixels import CHANNELS, array_to_rgb, as_array, white_value


def images_by_record(images, size, names):
    """The images of raw records as one list of (H, W, 3) uint8 arrays per record.

    They are read by `keras_betakd.data.load_image`, so one rule holds for the range of
    their values, wherever they come from; uint8 arrays (H, W, 3) are not copied. An
    array of all images is in one range.

    Args:
        images: `None`; an array or tensor (B, H, W, C), or (B, N, H, W, C) for N images
            each; or for each record a source of `load_image`, a sequence of them, or
            `None`.
        size: B.
        names: B strings that name the records in errors.

    Raises:
        ValueError: another number of entries than B, or an image that cannot be read.
        FileNotFoundError: there is no file at the path of an image.
    """
    if images is None:
        return [[] for _ in range(size)]
    white = None
    if is_array(images):
        images = as_array(images)
        white = _common_white(images, names)
    elif isinstance(images, (str, bytes, os.PathLike, Mapping)) or not hasattr(
        images, "__len__"
    ):
        raise ValueError(
            "`images` must be a list with one entry for each record, or an array of "
            f"all their images. Received: {type(images).__name__}"
        )
    if len(images) != size:
        raise ValueError(
            f"`images` must have one entry for each of the {size} prompts (an "
            f"empty list for a record without image). Received: {len(images)}"
        )
    return [_of_record(i, n, white) for i, n in zip(images, names, strict=True)]


def _common_white(images, names):
    """The value of white in an array of all images; `None` in one of their sources."""
    if images.ndim < 3 or images.dtype.kind in "OUS" or not images.size:
        return None
    if images.ndim == 3 and images.shape[-1] in CHANNELS:
        raise ValueError(
            "`images` must have one image for each record, (B, H, W, 3) as one array. "
            f"Received: an array of shape {images.shape}, which is one image"
        )
    try:
        white = white_value(images)
    except ValueError:
        for image, name in zip(images, names, strict=False):
            _named(lambda image=image: white_value(image), name)
        raise
    if white == 255 and images.dtype.kind == "f":
        _expect_one_range(images, names)
    return white


def _expect_one_range(images, names):
    """Raises a `ValueError` for an image of floats 0..1 beside others of 0..255."""
    for image, name in zip(images, names, strict=False):
        if 0 < image.max() <= 1 and (image % 1).any():
            raise ValueError(
                f"Record {name}: its image seems to have values in 0..1, others of the "
                "same array have them in 0..255. Bring all to one range, or make "
                f"uint8 of a very dark image. Received: values up to {image.max()}"
            )


def _of_record(images, name, white):
    if images is None:
        return []
    if is_array(images):
        images = as_array(images)
        if images.ndim == 4 and white is None:
            white = _common_white(images, [name] * len(images))
        sources = images.ndim == 1 and images.dtype.kind in "OUS"
        images = list(images) if images.ndim == 4 or sources else [images]
    elif not isinstance(images, (list, tuple)):
        images = [images]
    places = [f"image {i} of {len(images)}: " for i in range(1, len(images) + 1)]
    places = places if len(places) > 1 else [""]
    return [
        _named(lambda image=image: _read(image, white), name, place)
        for image, place in zip(images, places, strict=False)
    ]


def _named(read, name, place=""):
    """`read()`, with the record in its errors."""
    try:
        return read()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"Record {name}: {place}{error}") from error
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"Record {name}: {place}{error}") from error


def _read(image, white):
    if not is_array(image):
        return load_image(image)
    image = as_array(image)
    if image.ndim == 2 and image.shape[-1] in CHANNELS:
        raise ValueError(
            "an image must be an array (H, W, 3), or (H, W) if it is grey. Received: "
            f"shape {image.shape}, which is a row of an image"
        )
    is_rgb = image.ndim == 3 and image.shape[-1] == 3 and image.size
    if is_rgb and image.dtype == np.uint8:
        return image
    return array_to_rgb(image, white)
