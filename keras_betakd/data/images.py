"""Pictures of any kind as `(height, width, 3)` uint8 arrays, and image marks.

Every loader of the library reads its pictures through `load_image`, and cleans
its texts through `neutralize_image_marks`, so both rules live here only.
"""

import io
import os
import re

import numpy as np

IMAGE_MARK = "<image>"
"""The neutral mark that stands where a picture belongs in a prompt.

Loaders write it; the model's own preprocessing swaps it for that model's mark.
"""

BACKGROUND = 255
"""Transparent pixels are laid over white, so that white paper stays white."""

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
    """Takes the meaning out of image marks in text that a user wrote.

    A tokenizer turns the literal text `<start_of_image>` into the token that
    announces a picture, so a question that merely talks about such a mark would
    count as one picture more. One space after the bracket is enough to stop
    that and leaves the text readable. Covered, in any case of letters:
    `<image>`, `<img>`, `<start_of_image>`, `<end_of_image>`,
    `<image_soft_token>`, `<|image|>`, `<|image_pad|>`, `<|vision_start|>`,
    `<|image>`, `[IMG]` and their like for video and audio, and every chat mark
    of the form `<|...|>`. Other uses of `<` are left alone.

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
    """Raises a `ValueError` if text that is put behind every prompt has a mark.

    Example:

    >>> expect_no_mark("prompt_suffix", "Answer in a word.")
    """
    if text and IMAGE_MARK in text:
        raise ValueError(
            f"`{name}` must not hold the image mark {IMAGE_MARK!r}: the pictures' "
            f"marks are put in by themselves. Received: {name}={text!r}"
        )


def load_image(source) -> np.ndarray:
    """Reads one picture as a `(height, width, 3)` uint8 array in RGB.

    Every Pillow mode is accepted (black and white, grey, palette, RGB, RGBA,
    CMYK, 16 and 32 bit grey, float, ...). Transparent parts are laid over white.
    The orientation that a camera wrote into the EXIF data is applied. Of an
    animation, the first frame is read.

    What is not 8 bit is recognised by its largest value: floats up to 1 are read
    as 0..1, everything else up to 255 as 0..255, up to 65535 as 0..65535.

    Args:
        source: A path, the bytes of an image file, a dict with `"bytes"` and
            `"path"` (as Hugging Face datasets hand them out; the bytes win), a
            Pillow picture, or a uint8, uint16 or float array of shape `(H, W)`,
            `(H, W, 1)`, `(H, W, 3)` or `(H, W, 4)` with the alpha last.

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
    _expect_picture(source)
    return _guarded(lambda: _picture_to_rgb(source), f"picture {source!r}")


def check_image(source) -> None:
    """Raises for what can be known without decoding: of a long run, at its start.

    Args:
        source: As for `load_image`.

    Raises:
        FileNotFoundError: There is nothing at the path.
        ValueError: The path leads to a folder or a device, or a dict holds neither
            bytes nor a path.
        TypeError: `source` is of another type.

    Example:

    ```python
    check_image({"bytes": None, "path": "pictures/1.png"})
    ```
    """
    if isinstance(source, dict):
        source = _from_dict(source)
    if isinstance(source, (str, os.PathLike)):
        check_image_path(source)
    elif not isinstance(source, (bytes, bytearray, memoryview, np.ndarray)):
        _expect_picture(source)


def check_image_path(path) -> None:
    """Raises if `path` is not a file that exists.

    Args:
        path: A path as `str` or `os.PathLike`.

    Raises:
        FileNotFoundError: There is nothing at the path.
        ValueError: The path leads to a folder or a device.

    Example:

    ```python
    check_image_path("pictures/1.png")
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


def _expect_picture(source):
    from PIL import Image

    if not isinstance(source, Image.Image):
        raise TypeError(
            "An image must be a path, bytes, a dict with 'bytes' and 'path', a Pillow "
            f"picture or a numpy array. Received: {type(source).__name__}"
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
        with Image.open(file) as picture:
            _refuse_bomb(picture, Image.MAX_IMAGE_PIXELS)
            return _picture_to_rgb(picture)

    return _guarded(read, name)


def _refuse_bomb(picture, limit):
    """Refuses where Pillow only warns.

    Compared by hand and not by a warning filter: filters are global to the
    process, and data workers are threads. No pixel has been decoded yet.
    """
    pixels = picture.width * picture.height
    if limit is not None and pixels > limit:
        raise ValueError(
            f"it has {pixels} pixels, more than the {limit} that Pillow deems safe; "
            "raise `PIL.Image.MAX_IMAGE_PIXELS` if you trust the file"
        )


def _guarded(read, name):
    """Runs `read`, and says which picture it was if that fails."""
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


def _picture_to_rgb(picture):
    from PIL import ImageOps

    picture = ImageOps.exif_transpose(picture)
    mode = picture.mode
    if mode[0] in "IF":  # 16 and 32 bit grey: Pillow would clip it at 255.
        return _array_to_rgb(np.asarray(picture))
    if picture.has_transparency_data:
        if mode == "La":
            picture = picture.convert("LA")
        return _array_to_rgb(np.asarray(picture.convert("RGBA")))
    return np.array(picture.convert("RGB"))


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
