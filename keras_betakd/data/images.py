"""Reads images of any kind as uint8 arrays, and neutralizes image marks in text.

All loaders of the library read their images by `load_image` and pass the texts of
users through `neutralize_image_marks`.
"""

import io
import os
import re

import numpy as np

IMAGE_MARK = "<image>"
"""The mark that shows the place of an image in a prompt, the same for all models.

Loaders write it; the preprocessing of each model replaces it by that model's own mark.
"""

BACKGROUND = 255
"""The value, white, of the background that transparent pixels are blended with."""

_MARK = re.compile(
    r"""([<\[])                     # the opening bracket
    (?=  /?\|?  (?:
        (?:start|end|begin|boi|eoi)_of_\w+ | boi | eoi
      | (?:image|img|im|vision|video|audio|fake_token_around)\w*
    ) \|? [>\]]
    | \|[^<>|\s]*\|> )              # any chat mark: <|im_end|>, <|endoftext|>""",
    re.IGNORECASE | re.VERBOSE,
)


def neutralize_image_marks(text: str) -> str:
    """Makes plain text of image marks and chat marks in text that a user wrote.

    It puts one space after the opening bracket of each mark. Without it, a tokenizer
    turns the literal text `<start_of_image>` into the token that announces an image,
    so that a question about such a mark counts as one image more. The text stays
    readable. Marks are found in upper and lower case: `<image>`, `<img>`,
    `<start_of_image>`, `<end_of_image>`, `<image_soft_token>`, `<|image|>`,
    `<|image_pad|>`, `<|vision_start|>`, `<|image>`, `[IMG]`, the corresponding marks
    of video and audio, and every chat mark of the form `<|...|>`. Other uses of `<`
    are left unchanged.

    Args:
        text: The text of a question, choice, hint or answer.

    Returns:
        The text with a space put after the bracket of each mark.

    Example:

    >>> neutralize_image_marks("What does <image> mean if a<b?")
    'What does < image> mean if a<b?'
    """
    return _MARK.sub(r"\1 ", text)


def expect_no_mark(name: str, text: str | None) -> None:
    """Raises a `ValueError` if `text`, of the argument `name`, holds `IMAGE_MARK`.

    Example:

    >>> expect_no_mark("prompt_suffix", "Answer in a word.")
    """
    if text and IMAGE_MARK in text:
        raise ValueError(
            f"`{name}` must not hold the image mark {IMAGE_MARK!r}: the images' "
            f"marks are put in by themselves. Received: {name}={text!r}"
        )


def load_image(source) -> np.ndarray:
    """Reads one image as a `(height, width, 3)` uint8 array in RGB.

    Every Pillow mode is accepted (black and white, grey, palette, RGB, RGBA,
    CMYK, 16 and 32 bit grey, float, ...). Transparent parts are blended with white.
    The orientation in the EXIF data is applied. Of an animation, the first frame is
    read.

    The range of values that are not 8 bit is inferred from the largest one: floats up
    to 1 are read as 0..1, all others up to 255 as 0..255, up to 65535 as 0..65535.

    Args:
        source: A path, the bytes of an image file, a dict with `"bytes"` and
            `"path"` (as Hugging Face datasets hand them out; the bytes win), a
            Pillow image, or a uint8, uint16 or float array of shape `(H, W)`,
            `(H, W, 1)`, `(H, W, 3)` or `(H, W, 4)`, whose last channel is alpha.

    Returns:
        A new `(H, W, 3)` uint8 array.

    Raises:
        FileNotFoundError: There is no file at the path.
        ValueError: The file is truncated, not an image or suspiciously large
            (Pillow's `Image.MAX_IMAGE_PIXELS`, where Pillow itself only warns);
            the array has another shape or impossible values.
        TypeError: `source` is of another type.

    Example:

    >>> load_image(np.zeros((4, 6), "uint8")).shape
    (4, 6, 3)
    """
    if isinstance(source, dict):
        source = _from_dict(source)
    if isinstance(source, np.ndarray):
        return _array_to_rgb(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        return _decode(io.BytesIO(data), f"{len(data)} bytes of image data")
    if isinstance(source, (str, os.PathLike)):
        check_image_path(source)
        return _decode(source, f"path {os.fspath(source)!r}")
    _expect_image(source)
    return _guarded(lambda: _image_to_rgb(source), f"image {source!r}")


def check_image(source) -> None:
    """Raises if an image cannot be read, as far as this shows without decoding it.

    This is quick enough to check all images before a long run.

    Args:
        source: As for `load_image`.

    Raises:
        FileNotFoundError: There is nothing at the path.
        ValueError: The path leads to a folder or a device, or a dict holds neither
            bytes nor a path.
        TypeError: `source` is of another type.

    Example:

    ```python
    check_image({"bytes": None, "path": "images/1.png"})
    ```
    """
    if isinstance(source, dict):
        source = _from_dict(source)
    if isinstance(source, (str, os.PathLike)):
        check_image_path(source)
    elif not isinstance(source, (bytes, bytearray, memoryview, np.ndarray)):
        _expect_image(source)


def check_image_path(path) -> None:
    """Raises if `path` is not a file that exists.

    Args:
        path: A path as `str` or `os.PathLike`.

    Raises:
        FileNotFoundError: There is nothing at the path.
        ValueError: The path leads to a folder or a device.

    Example:

    ```python
    check_image_path("images/1.png")
    ```
    """
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"There is no image file at this path. Received: {os.fspath(path)!r}"
        )
    if not os.path.isfile(path):
        raise ValueError(
            f"An image path must lead to a regular file. Received: {os.fspath(path)!r}"
        )


def _expect_image(source):
    from PIL import Image

    if not isinstance(source, Image.Image):
        raise TypeError(
            "An image must be a path, bytes, a dict with 'bytes' and 'path', a Pillow "
            f"image or a numpy array. Received: {type(source).__name__}"
        )


def _from_dict(source):
    for key in ("bytes", "path"):
        if source.get(key) is not None:
            return source[key]
    raise ValueError(
        "An image dict needs 'bytes' or 'path', one of them not None. "
        f"Received: keys {sorted(map(str, source))}"
    )


def _decode(file, name):
    from PIL import Image

    def read():
        with Image.open(file) as image:
            _refuse_bomb(image, Image.MAX_IMAGE_PIXELS)
            return _image_to_rgb(image)

    return _guarded(read, name)


def _refuse_bomb(image, limit):
    """Raises for an image of more pixels than Pillow deems safe; Pillow only warns.

    The size is compared here, and Pillow's warning is not turned into an error by a
    filter, since filters are global to the process and data workers are threads. No
    pixel has been decoded yet.
    """
    pixels = image.width * image.height
    if limit is not None and pixels > limit:
        raise ValueError(
            f"it has {pixels} pixels, more than the {limit} that Pillow deems safe; "
            "raise `PIL.Image.MAX_IMAGE_PIXELS` if you trust the file"
        )


def _guarded(read, name):
    """Returns `read()`; an error of it becomes a `ValueError` that names the image."""
    from PIL import Image

    bombs = (Image.DecompressionBombError, Image.DecompressionBombWarning)
    broken = (OSError, SyntaxError, EOFError, ValueError, *bombs)
    try:
        return read()
    except broken as error:
        raise ValueError(
            "Could not read this image: it is truncated, damaged or no image. "
            f"Received: {name} ({error})"
        ) from error


def _image_to_rgb(image):
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    mode = image.mode
    if mode[0] in "IF":  # 16 and 32 bit grey: Pillow would clip it at 255.
        return _array_to_rgb(np.asarray(image))
    if image.has_transparency_data:
        if mode == "La":
            image = image.convert("LA")
        return _array_to_rgb(np.asarray(image.convert("RGBA")))
    return np.array(image.convert("RGB"))


def _array_to_rgb(array):
    array = _to_uint8(array)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or 0 in array.shape:
        raise ValueError(
            "An image array must have the shape (H, W), (H, W, 1), (H, W, 3) or "
            f"(H, W, 4), with at least one pixel. Received: shape {array.shape}"
        )
    if array.shape[-1] == 4:
        array = _over_background(array)
    return np.array(np.broadcast_to(array, (*array.shape[:2], 3)))


def _over_background(array):
    color = array[..., :3].astype("float64")
    alpha = array[..., 3:].astype("float64") / 255
    return np.rint(color * alpha + BACKGROUND * (1 - alpha)).astype("uint8")


def _to_uint8(array):
    if array.dtype == np.uint8 or array.size == 0:
        return array
    if array.dtype == np.bool_:
        return array.astype("uint8") * 255
    if array.dtype.kind not in "iuf":
        raise ValueError(
            f"An image array must hold numbers. Received: dtype {array.dtype}"
        )
    low, high = array.min(), array.max()
    if not (np.isfinite(low) and np.isfinite(high) and 0 <= low and high <= 65535):
        raise ValueError(
            "Image values must be finite and lie in 0..1, 0..255 or 0..65535. "
            f"Received: values from {low} to {high}"
        )
    top = 65535 if high > 255 else 255
    if array.dtype.kind == "f" and high <= 1:
        top = 1
    return np.rint(array.astype("float64") * (255 / top)).astype("uint8")
