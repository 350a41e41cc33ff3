"""The record format of Qwen2-VL, Qwen2.5-VL and Qwen3-VL."""

import itertools

import numpy as np

from keras_betakd.preprocessing.qwen_format import QwenFormat


class QwenVLFormat(QwenFormat):
    """Converts records for `keras_betakd.qwen_vl.QwenVLCausalLM`.

    Images of a batch are padded to the tokens of the largest, rounded up to those of
    `max_pixels`, or a half, a quarter, ... of them. Steps are compiled once for each.
    """

    decodes_cached = True
    packs_prompts = True

    @property
    def _patch_shape(self):
        return (3 * self.preprocessor.image_converter.patch_size**2,)

    def _converted(self, image):
        found = self.preprocessor.image_converter(image)
        return found["patches"], tuple(int(n) for n in found["grid_thw"])

    def _grid(self, image):
        return self.preprocessor.image_converter.grid(*image.shape[:2])

    def _patches(self, parts):
        merge = self._merge**2
        sizes = [len(patches) // merge for row in parts for patches, _ in row]
        return merge * rounded_up(max(sizes, default=1), self._most_tokens)

    @property
    def _most_tokens(self):
        """The most tokens of an image: no bucket need be larger."""
        converter = self.preprocessor.image_converter
        return converter.max_pixels // (converter.patch_size * self._merge) ** 2

    def packed_prompts(self, inputs, length):
        """The inputs of `generate_step`: prompts padded by a token that ends no answer.

        keras-hub's samplers take one where the answer will stand for its end, and
        `<|endoftext|>` both pads and ends.
        """
        x = self.prompts_alone(inputs, length)
        special = self.preprocessor.tokenizer.special_token_ids
        plain = next(i for i in itertools.count() if i not in special)
        mask = np.asarray(x["padding_mask"], bool)
        return {**x, "token_ids": np.where(mask, x["token_ids"], plain)}


def rounded_up(number, most):
    """`most`, halved as often as it stays enough for a number of tokens.

    Most images of a data set are larger than the limit, and are padded by little.

    Example:

    >>> [rounded_up(n, most=1280) for n in (1230, 641, 640, 256)]
    [1280, 1280, 640, 320]
    """
    size = max(number, most)
    while size > 1 and -(-size // 2) >= number:
        size = -(-size // 2)
    return size
