"""Makes patches of images of any size as the published models' own code does."""

from collections.abc import Sequence

import keras
import keras_hub
import numpy as np

from keras_betakd.data.images import load_image
from keras_betakd.preprocessing.image_inputs import CLIP_MEAN, CLIP_STD, normalised
from keras_betakd.preprocessing.qwen_images import (
    check_limits,
    patches_of,
    resized,
    smart_size,
)


@keras.saving.register_keras_serializable(package="keras_betakd")
class QwenVLImageConverter(keras_hub.layers.ImageConverter):
    """Resizes images to whole image tokens, normalises them and cuts them up.

    An image keeps about its shape: its sides become multiples of
    f = `patch_size * spatial_merge_size`, and its area stays within the limits
    (`keras_betakd.preprocessing.qwen_images.smart_size`). Pillow resizes it, bicubic;
    the values then become (x / 255 - mean) / std of each channel. It has H * W / f^2
    image tokens, so the limits decide what an image costs: the defaults are 256 to
    1280 tokens for `patch_size=14`. The published settings of Qwen2.5-VL, 3136 to
    12845056 pixels, allow 16384.

    Args:
        patch_size: int, p, pixels along a side of a patch: 14 for Qwen2-VL and
            Qwen2.5-VL, 16 for Qwen3-VL.
        spatial_merge_size: int, patches along a side of an image token.
        min_pixels: int, the fewest pixels of a resized image.
        max_pixels: int, the most.
        mean: of the three channels, of values from 0 to 1. Defaults to CLIP's;
            Qwen3-VL's is 0.5.
        std: likewise.
        **kwargs: as for any `keras_hub.layers.ImageConverter`.

    Call arguments:
        inputs: one image, whatever `keras_betakd.data.load_image` reads. Transparent
            parts are blended with white.

    Returns:
        Dict of NumPy arrays: `"patches"`, float32 (P, 3 * p * p), in merge-block order
        and each in the order channel, y, x; and `"grid_thw"`, int32 (3,): 1 and the
        rows and columns of the P patches. The published models read an image as two
        equal frames; it is one here.

    Raises:
        ValueError: the longer side of an image is more than 200 times the shorter.

    Example:

    >>> converter = QwenVLImageConverter(min_pixels=3136, max_pixels=12845056)
    >>> converter(np.zeros((60, 90, 3), "uint8"))["patches"].shape
    (24, 588)

    Source: Qwen2-VL's image processor in `transformers`, and `qwen-vl-utils`.
    """

    def __init__(
        self,
        patch_size: int = 14,
        spatial_merge_size: int = 2,
        min_pixels: int = 200704,
        max_pixels: int = 1003520,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
        **kwargs,
    ):
        super().__init__(**kwargs)
        for name, value in (
            ("patch_size", patch_size),
            ("spatial_merge_size", spatial_merge_size),
        ):
            if type(value) is not int or value < 1:
                raise ValueError(
                    f"`{name}` must be a whole number, 1 or more. Received: "
                    f"{name}={value!r}"
                )
        check_limits(patch_size * spatial_merge_size, min_pixels, max_pixels)
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(
                "`mean` and `std` must be three numbers, those of `std` above 0. "
                f"Received: mean={mean}, std={std}"
            )
        self.patch_size = patch_size
        self.spatial_merge_size = spatial_merge_size
        self.min_pixels = min_pixels
        self.max_pixels = max_pixels
        self.mean = tuple(mean)
        self.std = tuple(std)

    def __call__(self, inputs):
        # `keras.layers.Layer.__call__` would convert the image to a tensor first.
        return self.call(inputs)

    def call(self, inputs):
        image = load_image(inputs)
        grid = self.grid(*image.shape[:2])
        size = grid[1] * self.patch_size, grid[2] * self.patch_size
        pixels = normalised(resized(image, size), self.mean, self.std)
        patches = patches_of(pixels, self.patch_size, self.spatial_merge_size)
        return {"patches": patches, "grid_thw": np.array(grid, "int32")}

    def grid(self, height: int, width: int) -> tuple[int, int, int]:
        """`(1, rows, columns)` of the patches of an image of this size in pixels."""
        factor = self.patch_size * self.spatial_merge_size
        size = smart_size(height, width, factor, self.min_pixels, self.max_pixels)
        return 1, size[0] // self.patch_size, size[1] // self.patch_size

    def get_config(self):
        base = super().get_config()
        kept = ("name", "trainable", "dtype")
        return {
            **{key: base[key] for key in kept if key in base},
            "patch_size": self.patch_size,
            "spatial_merge_size": self.spatial_merge_size,
            "min_pixels": self.min_pixels,
            "max_pixels": self.max_pixels,
            "mean": list(self.mean),
            "std": list(self.std),
        }
