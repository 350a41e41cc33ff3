"""Reads images of any kind as uint8 arrays, and neutralizes image marks in text.

All loaders of the library read their images by `load_image` and pass the texts of
users through `neutralize_image_marks`.
"""

import io
import os
import re
from typing import Any

import numpy as np

from keras_betakd.data.image_places import local_place
from keras_betakd.data.pixels import array_to_rgb, as_array, image_to_rgb

IMAGE_MARK = "<image>"
"""The mark that shows the place of an image in a prompt, the same for all models.

Loaders write it; the preprocessing of each model replaces it by that model's own mark.
"""

FORMATS = (
    *("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "ICO"),
    *("AVIF", "JPEG2000", "QOI", "TGA"),
)
"""The formats of image files that are read, by Pillow's names.

None of them is a program: Pillow gives PostScript to an interpreter.
"""

_MEDIA = "image|img|vision|video|audio|multimodal"

_MARK = re.compile(
    rf"""([<\[])                    # the opening bracket
    (?=  /?\|?  (?:
        (?:start|end|begin|boi|eoi)_of_\w+ | boi | eoi
      | (?:{_MEDIA}|im|fake_token_around)\w*
    ) \|? [>\]]
    | \|[^<>|\s]*\|>                # any chat mark: <|im_end|>, <|endoftext|>
    | (?<=<)(?: \|\w+> | \w+\|> ) ) # Gemma 4's: <|turn>, <turn|>""",
    re.IGNORECASE | re.VERBOSE,
)

_IMAGE_TOKEN = re.compile(
    rf"""[<\[] /?\|? (?:
        (?:start|end|begin)_of_(?:{_MEDIA}) | boi | eoi | begin_image | end_image
      | (?:{_MEDIA}|fake_token_around)\w*
      | (?<=<)im_\w+ )
    \|? [>\]]""",
    re.IGNORECASE | re.VERBOSE,
)


def is_image_token(token: str) -> bool:
    """Whether a token of a vocabulary stands, by its text, for an image or a sound.

    Example:

    >>> is_image_token("<|vision_start|>"), is_image_token("<|im_start|>")
    (True, False)
    """
    return _IMAGE_TOKEN.fullmatch(token) is not None


def neutralize_image_marks(text: str) -> str:
    """Makes plain text of image marks and chat marks in text that a user wrote.

    It puts one space after the opening bracket of each mark. Without it, a tokenizer
    turns the literal text `<start_of_image>` into the token that announces an image,
    so that a question about such a mark counts as one image more. The text stays
    readable. Marks are found in upper and lower case: `<image>`, `<img>`,
    `<start_of_image>`, `<end_of_image>`, `<image_soft_token>`, `<|image|>`,
    `<|image_pad|>`, `<|vision_start|>`, `<|image>`, `[IMG]`, the corresponding marks
    of video and audio, and every chat mark of the forms `<|...|>`, `<|...>` and
    `<...|>`. Other uses of `<` are left unchanged.

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
    """Raises a `ValueError` if `text`, of the argument `name`, cannot be in a prompt.

    It is no text, or holds `IMAGE_MARK`.

    Example:

    >>> expect_no_mark("prompt_suffix", "Answer in a word.")
    """
    if not isinstance(text, str | None):
        raise ValueError(f"`{name}` must be a text. Received: {name}={text!r}")
    if text and IMAGE_MARK in text:
        raise ValueError(
            f"`{name}` must not hold the image mark {IMAGE_MARK!r}: the images' "
            f"marks are put in by themselves. Received: {name}={text!r}"
        )


def load_image(source: Any, published: bool = False) -> np.ndarray:
    """Reads one image as a `(height, width, 3)` uint8 array in RGB.

    Every Pillow mode is accepted (black and white, grey, palette, RGB, RGBA,
    CMYK, 16 and 32 bit grey, float, ...). Transparent parts are blended with white.
    The orientation in the EXIF data is applied. Of an animation, the first frame is
    read. Beside the decoded image and the result, little memory is used.

    The range of values follows from the type. Of arrays and tensors, bool is 0..1,
    uint16 is 0..65535, all other integers are 0..255, whatever their values are. Floats
    are 0..1 if none exceeds 1, else 0..255 (values a little above 1 are refused, as is
    what lies in no range: -1..1, NaN). Of Pillow's modes, `I` and `I;16` are 0..65535
    and `F` is read as an array of floats.

    Files are read in the formats `keras_betakd.data.images.FORMATS` (PNG, JPEG, WEBP,
    BMP, GIF, TIFF, PPM, ICO, AVIF, JPEG 2000, ...), never by another program: Pillow
    would start one for PostScript.

    Args:
        source: A path or its `file:` address, the bytes of an image file, a `data:`
            address with the file in base64, a dict with `"bytes"` and `"path"` (as
            Hugging Face datasets hand them out; the bytes win), a Pillow image, or a
            NumPy array or a tensor of shape `(H, W)`, `(H, W, 1)`, `(H, W, 3)` or
            `(H, W, 4)`, whose last channel is alpha.

    Returns:
        A new `(H, W, 3)` uint8 array.

    Raises:
        FileNotFoundError: There is no file at the path.
        ValueError: The file is truncated, not an image, of another format or
            suspiciously large (Pillow's `Image.MAX_IMAGE_PIXELS`, where Pillow itself
            only warns); the path leads to no regular file; the array has another shape
            or impossible values.
        TypeError: `source` is of another type.

    Example:

    >>> load_image(np.zeros((4, 6), "uint8")).shape
    (4, 6, 3)
    """
    source = _file_or_array(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        name = f"{len(data)} bytes of image data"
        return _decode(io.BytesIO(data), name, published)
    if isinstance(source, (str, os.PathLike)):
        check_image_path(source)
        return _decode(source, f"path {os.fspath(source)!r}", published)
    if is_array(source):
        return array_to_rgb(as_array(source))
    _expect_image(source)
    return _guarded(lambda: _pixels(source, published), f"image {source!r}")


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
    source = _file_or_array(source)
    if isinstance(source, (str, os.PathLike)):
        check_image_path(source)
    elif not isinstance(source, (bytes, bytearray, memoryview)):
        if not is_array(source):
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


def is_array(source) -> bool:
    """Whether a source of `load_image` is a NumPy array or a tensor of any backend.

    Example:

    >>> is_array(np.zeros((4, 6))), is_array("a.png")
    (True, False)
    """
    return hasattr(source, "__array__") and not isinstance(source, (str, bytes))


def _expect_image(source):
    from PIL import Image

    if not isinstance(source, Image.Image):
        raise TypeError(
            "An image must be a path, bytes, a dict with 'bytes' and 'path', a Pillow "
            "image, a NumPy array or a tensor. Received: "
            f"{type(source).__name__}"
        )
    if source.format == "EPS":
        raise ValueError(
            "PostScript is a program, which is not started: make an image of it first, "
            f"by `image.convert('RGB')` if you trust the file. Received: {source!r}"
        )


def _file_or_array(source):
    """The source without the dict or the address that it may be wrapped in."""
    if isinstance(source, dict):
        source = _from_dict(source)
    return local_place(source) if isinstance(source, str) else source


def _from_dict(source):
    for key in ("bytes", "path"):
        if source.get(key) is not None:
            return source[key]
    raise ValueError(
        "An image dict needs 'bytes' or 'path', one of them not None. "
        f"Received: keys {sorted(map(str, source))}"
    )


def _pixels(image, published):
    return np.array(image.convert("RGB")) if published else image_to_rgb(image)


def _decode(file, name, published):
    from PIL import Image

    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]

    def read():
        with Image.open(file, formats=formats) as image:
            _refuse_bomb(image, Image.MAX_IMAGE_PIXELS)
            return _pixels(image, published)

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
    try:
        return read()
    except MemoryError:
        raise
    except Exception as error:  # Of a damaged file, Pillow raises almost any.
        raise ValueError(
            "Could not read this image: it is truncated, damaged, no image, or of a "
            f"format other than {', '.join(FORMATS)}. Received: {name} ({error})"
        ) from error
