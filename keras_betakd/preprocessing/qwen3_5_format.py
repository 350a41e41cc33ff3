"""The record format of Qwen3.5, whose keras-hub preprocessor trains on text only."""

import re

import keras

from keras_betakd.preprocessing import image_inputs
from keras_betakd.preprocessing.qwen_format import QwenFormat

SPECIAL = ("im_start", "end", "vision_start", "vision_end", "image", "video")


class Qwen3_5Format(QwenFormat):
    """keras-hub's Qwen3.5, whose position ids hold the temporal axis twice."""

    axes = (0, 0, 1, 2)

    @property
    def _patch_shape(self):
        converter = self.preprocessor.image_converter
        return (converter.temporal_patch_size, *[converter.patch_size] * 2, 3)

    def _converted(self, image):
        found = image_inputs.converted(image, self.preprocessor.image_converter)
        return found["patches"], tuple(int(n) for n in found["grid_thw"])

    def _encode(self, text):
        """Special tokens are looked up: a byte-pair tokenizer would split them."""
        tokenizer = self.preprocessor.tokenizer
        names = [f"{name}_token" for name in SPECIAL]
        names = [name for name in names if getattr(tokenizer, name, None)]
        special = {getattr(tokenizer, n): getattr(tokenizer, f"{n}_id") for n in names}
        pieces = re.split("(" + "|".join(map(re.escape, special)) + ")", text)
        ids = []
        for piece in filter(None, pieces):
            if piece in special:
                ids.append(special[piece])
            else:
                ids += keras.ops.convert_to_numpy(tokenizer(piece)).tolist()
        return ids
