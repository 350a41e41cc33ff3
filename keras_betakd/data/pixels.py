"""Pixels of arrays, tensors and Pillow images as uint8 RGB, with little memory.

Everything is converted strip by strip: beside the image and the result, only a strip of
rows is ever held in another type.
"""

from collections.abc import Iterator

import numpy as np

BACKGROUND = 255
"""The value, white, of the background that transparent pixels are blended with."""

STRIP_PIXELS = 2**18
"""About how many pixels are converted at once."""

CHANNELS = (1, 3, 4)
"""How many channels an image array may have: grey, RGB, RGB and alpha."""


def as_array(value) -> np.ndarray:
    """Returns an array or a tensor of any backend as a NumPy array.

    Example:

    >>> as_array(np.zeros((4, 6))).shape
    (4, 6)
    """
    if hasattr(value, "detach"):  # PyTorch, whose bfloat16 NumPy does not know
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
    array = np.asarray(value.numpy() if hasattr(value, "numpy") else value)
    return array.astype("float32") if array.dtype.name == "bfloat16" else array


def white_value(array: np.ndarray) -> int:
    """Returns the value that stands for white, 255 in the result: 1, 255 or 65535.

    For bool and whole numbers the type decides, never the values, so that a dark image
    of 16 bits is not read as one of 8: 1 for bool, 65535 for uint16, 255 for all other
    integers. Floats are 0..1 if none of them exceeds 1, else 0..255. A black image is
    black in both readings; one in 0..255 whose largest value is 1 or less is taken for
    0..1, so make uint8 of images as dark as that.

    Args:
        array: An image, or several that are to be read alike.

    Raises:
        ValueError: The array holds no numbers, or values that fit no range.

    Example:

    >>> white_value(np.array([0.0, 0.5])), white_value(np.array([0.0, 128.0]))
    (1, 255)
    """
    if array.dtype == np.uint8:
        return 255
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"An image array must hold numbers. Received: dtype {array.dtype}"
        )
    return _white_of(array.dtype, array.min(), array.max())


def _white_of(dtype, low, high):
    """`white_value` of an array of this dtype, from its least and greatest value."""
    if dtype.kind == "b":
        return 1
    if dtype.kind == "u" and dtype.itemsize == 2:
        return 65535
    if not (np.isfinite(low) and np.isfinite(high) and 0 <= low and high <= 255):
        raise ValueError(
            "The values of an image must be finite and lie in 0..255, floats also in "
            "0..1; uint16 is 0..65535. Bring them to one of these: `(image + 1) / 2` "
            "does from -1..1, `image.astype('uint16')` from 16 bits in another type. "
            f"Received: values from {low} to {high}, dtype {dtype}"
        )
    if dtype.kind != "f":
        return 255
    if 1 < high < 2:
        raise ValueError(
            "The values of an image of floats must lie in 0..1 or in 0..255, and these "
            "are a little more than 1: clip them to 0..1, or make uint8 of a very dark "
            f"image in 0..255. Received: values from {low} to {high}, dtype {dtype}"
        )
    return 1 if high <= 1 else 255


def array_to_rgb(array: np.ndarray, white: int | None = None) -> np.ndarray:
    """Returns an image array as a new (H, W, 3) uint8 array.

    Args:
        array: (H, W), (H, W, 1), (H, W, 3), or (H, W, 4), whose last channel is alpha.
        white: The value that stands for white; by default `white_value(array)`.

    Raises:
        ValueError: The array has another shape, or impossible values.

    Example:

    >>> array_to_rgb(np.array([[True]])).tolist()
    [[[255, 255, 255]]]
    """
    shape = array.shape
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[-1] not in CHANNELS or 0 in array.shape:
        advice = ""
        if array.ndim == 3 and array.shape[0] in CHANNELS and 0 not in array.shape:
            advice = " Channels come last: `np.moveaxis(image, 0, -1)` puts them there."
        raise ValueError(
            "An image array must have the shape (H, W), (H, W, 1), (H, W, 3) or "
            f"(H, W, 4), with at least one pixel.{advice} Received: shape {shape}, "
            f"dtype {array.dtype}"
        )
    white = white_value(array) if white is None else white
    result = np.empty((*array.shape[:2], 3), "uint8")
    for rows in _strips(*array.shape[:2]):
        result[rows] = _blended(_scaled(array[rows], white))
    return result


def image_to_rgb(image) -> np.ndarray:
    """Returns a Pillow image as a new (H, W, 3) uint8 array, turned upright.

    Modes of 16 and 32 bits (`I`, `I;16`) are 0..65535, those of floats (`F`) as in
    `white_value`.

    Raises:
        ValueError: The image has no pixels, or impossible values.

    Example:

    ```python
    image_to_rgb(PIL.Image.new("L", (6, 4)))
    ```
    """
    image = _upright(image)
    if not (image.width and image.height):
        raise ValueError(
            f"An image must have at least one pixel. Received: size {image.size}"
        )
    deep = image.mode[0] in "IF"  # Pillow would clip these at 255.
    white = _white_of_image(image) if deep else 255
    result = np.empty((image.height, image.width, 3), "uint8")
    for rows, strip in _image_strips(image):
        array = np.asarray(strip if deep else _eight_bit(strip))
        array = array[..., None] if array.ndim == 2 else array
        result[rows] = _blended(_scaled(array, white))
    return result


def _upright(image):
    """The image as its EXIF orientation shows it; itself if there is none."""
    from PIL import ImageOps

    image.load()
    turned = image.getexif().get(0x0112) in range(2, 9)
    return ImageOps.exif_transpose(image) if turned else image


def _white_of_image(image):
    arrays = [np.asarray(strip) for _, strip in _image_strips(image)]
    low = np.min([array.min() for array in arrays])
    high = np.max([array.max() for array in arrays])
    if image.mode[0] == "F":
        return _white_of(arrays[0].dtype, low, high)
    if low < 0 or high > 65535:
        raise ValueError(
            f"The values of an image in mode '{image.mode}' must lie in 0..65535. "
            f"Received: values from {low} to {high}"
        )
    return 65535


def _eight_bit(strip):
    """A part of a Pillow image in mode RGB, or in RGBA if it may be transparent."""
    if not strip.has_transparency_data:
        return strip.convert("RGB")
    return (strip.convert("LA") if strip.mode == "La" else strip).convert("RGBA")


def _strips(height: int, width: int) -> Iterator[slice]:
    """Slices of rows that together are the image."""
    step = max(1, STRIP_PIXELS // width)
    return (slice(top, min(top + step, height)) for top in range(0, height, step))


def _image_strips(image):
    """Pairs of a slice of rows and the part of a Pillow image in these rows."""
    for rows in _strips(image.height, image.width):
        yield rows, image.crop((0, rows.start, image.width, rows.stop))


def _scaled(array, white):
    """A strip in uint8, with `white` at 255."""
    if array.dtype == np.uint8:
        return array
    return np.rint(array.astype("float64") * (255 / white)).astype("uint8")


def _blended(array):
    """A uint8 strip of 1, 3 or 4 channels, the last of 4 blended with the background.

    The whole numbers are exact: n / 255 is never halfway between two of them.
    """
    if array.shape[-1] != 4:
        return array
    alpha = array[..., 3:].astype("uint16")
    color = array[..., :3] * alpha
    color += BACKGROUND * (255 - alpha) + 127
    color //= 255
    return color
