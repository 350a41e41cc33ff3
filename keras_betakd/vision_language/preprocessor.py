"""`ImageTextPreprocessor`: records to arrays, in Python or in graphs of `tf.data`."""

import functools
from typing import Any

import keras
import keras_hub
import numpy as np
from keras import ops

from keras_betakd.vision_language.graphs import in_graph, outside_graph


class ImageTextPreprocessor(keras_hub.models.CausalLMPreprocessor):
    """Base class of preprocessors that are plain Python; a subclass says what they do.

    A subclass implements `_training` and `_specs`.
    """

    def _training(self, x, sequence_length):
        """`(x, y, sample_weight)` of records, NumPy arrays.

        Args:
            x: what the preprocessor is called with.
            sequence_length: int; the preprocessor's if `None`.
        """
        raise NotImplementedError

    def _specs(self, sequence_length):
        """Shape and dtype of each array of `_training`, with a dict for the inputs."""
        raise NotImplementedError

    def build(self, input_shape):
        self.built = True

    def __call__(self, x, y=None, sample_weight=None, **kwargs):
        # `keras.layers.Layer.__call__` would convert texts and images to tensors first.
        return self.call(x, y=y, sample_weight=sample_weight, **kwargs)

    def call(self, x, y=None, sample_weight=None, sequence_length=None):
        training = functools.partial(self._training, sequence_length=sequence_length)
        if in_graph():
            return outside_graph(training, x, self._specs(sequence_length))
        return keras.utils.pack_x_y_sample_weight(*training(x))

    def generate_postprocess(self, x: dict[str, Any]) -> list[str]:
        """The texts of the tokens under the mask, without image and special tokens."""
        token_ids = ops.convert_to_numpy(x["token_ids"])
        # The ids of image tokens may be negative.
        kept = ops.convert_to_numpy(x["padding_mask"]).astype("bool") & (token_ids >= 0)
        kept &= ~np.isin(token_ids, self.tokenizer.special_token_ids)
        rows = zip(token_ids, kept, strict=True)
        return self.tokenizer.detokenize([row[found].tolist() for row, found in rows])
