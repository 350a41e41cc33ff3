"""Resizes, normalises and cuts images as the published Qwen models with vision do."""

import math

import numpy as np

MAX_RATIO = 200
"""How many times longer than the shorter side the longer side of an image may be."""


def check_limits(factor, min_pixels, max_pixels):
    """Raises a `ValueError` unless images can have a size within the limits.

    Args:
        factor: the sides of a resized image are multiples of it.
        min_pixels, max_pixels: the fewest and the most pixels of a resized image.

    Example:

    >>> check_limits(28, 200704, 1003520)
    """
    for name, value in (("min_pixels", min_pixels), ("max_pixels", max_pixels)):
        if type(value) is not int or value < 1:
            raise ValueError(
                f"`{name}` must be a whole number of pixels, 1 or more. Received: "
                f"{name}={value!r}"
            )
    if min_pixels > max_pixels:
        raise ValueError(
            "`min_pixels` must not exceed `max_pixels`: no size would be within the "
            f"limits. Received: min_pixels={min_pixels}, max_pixels={max_pixels}"
        )
    if max_pixels < factor**2:
        raise ValueError(
            f"`max_pixels` must be {factor**2} or more, the pixels of one image token "
            f"({factor} x {factor}). Received: max_pixels={max_pixels}"
        )


def smart_size(height, width, factor, min_pixels, max_pixels):
    """The size that an image is resized to: `(height, width)`.

    Each side is rounded to a multiple of f = `factor`, halves to the even one. Where
    the product then exceeds the most pixels, each side is floor(side / q / f) * f with
    q = sqrt(height * width / max_pixels), and f at least; where it is below the fewest,
    ceil(side * q / f) * f with q = sqrt(min_pixels / (height * width)).

    Args:
        height, width: of the image, in pixels.
        factor: int, pixels along a side of an image token: the patch size times the
            number of patches that are merged along each side.
        min_pixels, max_pixels: the fewest and the most pixels of the result.

    Raises:
        ValueError: one side is more than `MAX_RATIO` times the other.

    Example:

    >>> smart_size(480, 640, 28, 3136, 12845056)
    (476, 644)

    Source: `smart_resize` of Qwen2-VL's image processor in `transformers`, and of
    `qwen-vl-utils`.
    """
    if max(height, width) > MAX_RATIO * min(height, width):
        raise ValueError(
            f"The longer side of an image may be at most {MAX_RATIO} times the "
            "shorter one. Crop it, or leave the record out. Received: an image of "
            f"{height} x {width} pixels (height x width)"
        )
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    if rows * columns > max_pixels:
        q = math.sqrt(height * width / max_pixels)
        rows = max(factor, math.floor(height / q / factor) * factor)
        columns = max(factor, math.floor(width / q / factor) * factor)
    elif rows * columns < min_pixels:
        q = math.sqrt(min_pixels / (height * width))
        rows = math.ceil(height * q / factor) * factor
        columns = math.ceil(width * q / factor) * factor
    return rows, columns


def patches_of(pixels, patch, merge):
    """The patches of an image in merge-block order: (P, C * patch * patch).

    The `merge` x `merge` patches that become one image token follow one another, row by
    row; so do these blocks. The values of a patch are in the order channel, y, x.

    Args:
        pixels: (H, W, C), with sides that are multiples of `patch * merge`.
        patch: int, pixels along a side of a patch.
        merge: int, patches along a side of an image token.

    Example:

    >>> patches_of(np.arange(16).reshape(4, 4, 1), 1, 2)[:4, 0]
    array([0, 1, 4, 5])

    Source: Qwen2-VL's image processor in `transformers`, without its second frame.
    """
    height, width, channels = pixels.shape
    blocks = height // (merge * patch), width // (merge * patch)
    x = pixels.reshape(blocks[0], merge, patch, blocks[1], merge, patch, channels)
    x = x.transpose(0, 3, 1, 4, 6, 2, 5)
    return x.reshape(-1, channels * patch**2)


def resized(image, size):
    """An image of another size, as Pillow resizes it: uint8.

    Pillow's bicubic resizing smooths before it shrinks, and rounds to whole values
    after each direction.

    Args:
        image: (H, W, 3) uint8.
        size: `(height, width)` of the result.

    Example:

    >>> resized(np.zeros((8, 6, 3), "uint8"), (4, 4)).shape
    (4, 4, 3)
    """
    from PIL import Image

    if image.shape[:2] == tuple(size):
        return image
    image = Image.fromarray(image)
    return np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC))
