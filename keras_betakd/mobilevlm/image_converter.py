"""Resizes and normalises images exactly as the released models' own code does."""

import keras
import keras_hub
import numpy as np

from keras_betakd.data.images import load_image
from keras_betakd.mobilevlm.backbone import MobileVLMBackbone
from keras_betakd.preprocessing.image_inputs import CLIP_MEAN, CLIP_STD, normalised


@keras.saving.register_keras_serializable(package="keras_betakd")
class MobileVLMImageConverter(keras_hub.layers.ImageConverter):
    """Resizes images as Pillow does, and normalises them as CLIP does.

    Pillow's bicubic resizing smooths before it shrinks and rounds to whole values; that
    of `keras.layers.Resizing` gives other values, even with `antialias`. The values
    then become (x / 255 - mean) / std, with CLIP's mean and standard deviation of each
    channel.

    Args:
        image_size: pair of equal ints, S. Defaults to `(336, 336)`.
        aspect_ratio: `"pad"` centres an image on a square of CLIP's mean colour before
            it is resized (fine-tuning and evaluation); `"crop"` resizes its shorter
            side to S and keeps the middle (alignment pre-training, and the published
            ScienceQA numbers of MobileVLM).
        **kwargs: as for any `keras_hub.layers.ImageConverter`.

    Call arguments:
        inputs: an image, (H, W, 3), or a batch of them, (B, H, W, 3) or a list, as
            `keras_betakd.data.load_image` takes arrays: uint8, or floats.

    Returns:
        float32 (S, S, 3) or (B, S, S, 3), a NumPy array.

    Example:

    >>> converter = MobileVLMImageConverter((28, 28))
    >>> converter(np.zeros((10, 20, 3), "uint8")).shape
    (28, 28, 3)

    Source: the released preprocessing of LLaVA-1.5 and MobileVLM V2.
    """

    backbone_cls = MobileVLMBackbone

    def __init__(
        self,
        image_size: tuple[int, int] = (336, 336),
        aspect_ratio: str = "pad",
        **kwargs,
    ):
        if aspect_ratio not in ("pad", "crop"):
            raise ValueError(
                "`aspect_ratio` must be 'pad' or 'crop'. Received: "
                f"aspect_ratio={aspect_ratio!r}"
            )
        if image_size[0] != image_size[1]:
            raise ValueError(
                f"Images must become square. Received: image_size={image_size}"
            )
        super().__init__(image_size=image_size, **kwargs)
        self.aspect_ratio = aspect_ratio

    def __call__(self, inputs):
        # `keras.layers.Layer.__call__` would convert the images to tensors first.
        return self.call(inputs)

    def call(self, inputs):
        if not isinstance(inputs, (list, tuple)) and np.ndim(inputs) == 3:
            return self._convert(np.asarray(inputs))
        return np.stack([self._convert(np.asarray(image)) for image in inputs])

    def _convert(self, image):
        from PIL import Image

        image = Image.fromarray(load_image(image))
        if self.aspect_ratio == "pad":
            image = _padded(image)
        image = _resized(image, self.image_size[0])
        return normalised(image, CLIP_MEAN, CLIP_STD)

    def get_config(self):
        base = super().get_config()
        kept = ("name", "trainable", "dtype", "image_size")
        return {
            **{key: base[key] for key in kept if key in base},
            "aspect_ratio": self.aspect_ratio,
        }


def _padded(image):
    """The image centred on a square of CLIP's mean colour."""
    from PIL import Image

    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new("RGB", (side, side), tuple(int(255 * x) for x in CLIP_MEAN))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def _resized(image, size):
    """The image with its shorter side in `size`, and the middle of the longer one."""
    from PIL import Image

    width, height = image.size
    short = min(width, height)
    # The longer side is rounded down, as the released code does.
    width, height = (int(size * side / short) for side in (width, height))
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
