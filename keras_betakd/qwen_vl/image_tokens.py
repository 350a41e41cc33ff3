"""Image tokens: patches merged to them, and their places in the text."""

import keras
from keras import ops

from keras_betakd.backends import rows_at
from keras_betakd.qwen_vl.families import family_of
from keras_betakd.qwen_vl.vision_blocks import vision_norm


def merger_activation(x):
    """The exact GELU, whatever the blocks have."""
    return ops.gelu(x, approximate=False)


@keras.saving.register_keras_serializable(package="keras_betakd")
class PatchMerger(keras.layers.Layer):
    """Merges blocks of m x m patches to image tokens of the language model's width.

    token = dense_2(gelu(dense_1(block))), where a block is its m^2 normalised patches
    one after another.

    Args:
        family: as for `QwenVLVisionEncoder`.
        output_dim: int, H.
        spatial_merge_size: int, m.
        norm_after_merging: whether the whole block is normalised, not each patch.
        **kwargs: as for any layer.

    Call arguments:
        x: (B, M, P, D).

    Returns:
        (B, M, P / m^2, H).
    """

    def __init__(
        self,
        family: str,
        output_dim: int,
        spatial_merge_size: int = 2,
        norm_after_merging: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.family = family
        self.output_dim = output_dim
        self.spatial_merge_size = spatial_merge_size
        self.norm_after_merging = norm_after_merging
        self.norm = vision_norm(family_of(family), self.dtype_policy, "norm")

    def build(self, input_shape):
        width = input_shape[-1] * self.spatial_merge_size**2
        dtype = self.dtype_policy
        self.dense_1 = keras.layers.Dense(width, dtype=dtype, name="dense_1")
        self.dense_2 = keras.layers.Dense(self.output_dim, dtype=dtype, name="dense_2")
        self.dense_1.build((None, width))
        self.dense_2.build((None, width))
        self.norm.build((None, width if self.norm_after_merging else input_shape[-1]))
        self.built = True

    def call(self, x):
        batch, images, patches = ops.shape(x)[:3]
        size = self.spatial_merge_size**2
        if not self.norm_after_merging:
            x = self.norm(x)
        x = ops.reshape(x, (batch, images, patches // size, size * x.shape[-1]))
        if self.norm_after_merging:
            x = self.norm(x)
        return self.dense_2(merger_activation(self.dense_1(x)))

    def compute_output_shape(self, input_shape):
        patches, size = input_shape[2], self.spatial_merge_size**2
        tokens = None if patches is None else patches // size
        return (*input_shape[:2], tokens, self.output_dim)

    def get_config(self):
        return {
            **super().get_config(),
            "family": self.family,
            "output_dim": self.output_dim,
            "spatial_merge_size": self.spatial_merge_size,
            "norm_after_merging": self.norm_after_merging,
        }


class PlacedImageTokens(keras.layers.Layer):
    """Image tokens at their positions in the text, zeros elsewhere.

    Call arguments:
        features: (B, M, N, H), N tokens of each of M images, padding included.
        image_sources: int (B, T), the number j * N + k of token k of image j at each
            position; -1 for text.

    Returns:
        (B, T, H).
    """

    def build(self, input_shape):
        self.built = True

    def call(self, features, image_sources):
        width = features.shape[-1]
        tokens = ops.reshape(features, (ops.shape(features)[0], -1, width))
        source = ops.cast(image_sources, "int32")
        # Keras builds models with ones for all numbers, even of one token alone.
        last = ops.shape(tokens)[1] - 1
        found = rows_at(tokens, ops.minimum(ops.maximum(source, 0), last))
        return ops.where(source[..., None] >= 0, found, ops.zeros_like(found))

    def compute_output_shape(self, features_shape, image_sources_shape):
        return (*image_sources_shape, features_shape[-1])
