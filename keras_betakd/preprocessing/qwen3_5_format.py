"""The record format of Qwen3.5: images and tokens as published, not as keras-hub's.

What keras-hub 0.32 makes of a record differs from what the published model was trained
on: its image converter puts patches in rows over the whole image, where its own
vision encoder and the published model want those of an image token together; it rounds
sizes otherwise, and resizes without Pillow. How it is tokenized is in `byte_pairs`.
"""

import numpy as np

from keras_betakd.preprocessing.image_inputs import layer_settings, scaled
from keras_betakd.preprocessing.qwen_format import QwenFormat
from keras_betakd.preprocessing.qwen_images import patches_of, resized, smart_size

# The settings of a converter that decide what it makes of a image.
_USED = {
    *("patch_size", "temporal_patch_size", "spatial_merge_size"),
    *("min_pixels", "max_pixels", "scale", "offset"),
}
# Those that are without effect: what keras-hub takes for resizing, where the published
# model has Pillow's bicubic one, and what its converter does not read.
_UNUSED = {
    *("dtype", "interpolation", "antialias", "image_size", "crop_to_aspect_ratio"),
    *("pad_to_aspect_ratio", "bounding_box_format", "data_format"),
}


class Qwen3_5Format(QwenFormat):
    """keras-hub's Qwen3.5, whose position ids hold the temporal axis twice.

    The settings of its image converter are kept: sizes, limits, scale and offset.
    """

    axes = (0, 0, 1, 2)

    @property
    def _patch_shape(self):
        converter = self.preprocessor.image_converter
        return (converter.temporal_patch_size, *[converter.patch_size] * 2, 3)

    def _converted(self, image):
        converter, grid = self.preprocessor.image_converter, self._grid(image)
        frames, side, *_ = self._patch_shape
        pixels = resized(image, (grid[1] * side, grid[2] * side))
        pixels = scaled(pixels.astype("float32"), converter)
        patches = patches_of(pixels, side, self._merge).reshape(-1, 1, 3, side, side)
        return np.repeat(patches.transpose(0, 1, 3, 4, 2), frames, axis=1), grid

    def _grid(self, image):
        converter = _known(self.preprocessor.image_converter)
        limits = converter.min_pixels, converter.max_pixels
        side = converter.patch_size
        size = smart_size(*image.shape[:2], side * self._merge, *limits)
        return 1, size[0] // side, size[1] // side


def _known(converter):
    """The converter; raises if what it does cannot be done in its place."""
    import keras_hub

    known = keras_hub.layers.Qwen3_5ImageConverter
    more = set(layer_settings(converter)) - _USED - _UNUSED
    if more or type(converter).call is not known.call:
        raise ValueError(
            "Images of Qwen3.5 are converted by the published rules, with the "
            "settings of a `keras_hub.layers.Qwen3_5ImageConverter`. Give the "
            "preprocessor one of these, or write a record format for your own. "
            f"Received: a {type(converter).__name__}"
            + (f" with the settings {sorted(more)}" if more else "")
        )
    return converter
