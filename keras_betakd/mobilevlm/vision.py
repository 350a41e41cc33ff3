"""The vision tower: CLIP's patch features from one of its hidden layers."""

import keras
import keras_hub
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable(package="keras_betakd")
class CLIPVisionTower(keras.layers.Layer):
    """Patch features of a CLIP vision transformer, as LLaVA and MobileVLM use them.

    The features are one entry of the list of hidden states h_0 ... h_L, where h_0 is
    the output of the first layer normalisation and h_k that of block k; the class token
    is dropped, and no normalisation follows. Blocks after that entry hold weights of
    the checkpoints but are never run.

    Args:
        image_size: int, S, height and width of an image in pixels.
        patch_size: int, height and width of a patch.
        hidden_dim: int, D, width of the tower.
        num_layers: int, L.
        num_heads: int, attention heads of a block.
        intermediate_dim: int, width of a block's feed-forward layer.
        feature_layer: int, the index of the entry in the list; `-2` is the output of
            the last block but one.
        **kwargs: as for any layer.

    Call arguments:
        images: float (..., S, S, 3), normalised by `MobileVLMImageConverter`.

    Returns:
        (..., N, D), N = (S / patch_size)^2 patches, row by row.

    Example:

    >>> tower = CLIPVisionTower(28, 14, hidden_dim=8, num_layers=2, num_heads=2,
    ...     intermediate_dim=16)
    >>> tuple(tower(ops.zeros((1, 28, 28, 3))).shape)
    (1, 4, 8)

    Source: Radford et al. 2021 (CLIP); Liu et al. 2024 (LLaVA-1.5), section 3.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        hidden_dim: int,
        num_layers: int,
        num_heads: int,
        intermediate_dim: int,
        feature_layer: int = -2,
        **kwargs,
    ):
        super().__init__(**kwargs)
        blocks = feature_layer + (num_layers + 1 if feature_layer < 0 else 0)
        if not 0 <= blocks <= num_layers:
            raise ValueError(
                f"`feature_layer` must be one of the {num_layers + 1} hidden states of "
                f"{num_layers} blocks: {-num_layers - 1} to {num_layers}. Received: "
                f"feature_layer={feature_layer}"
            )
        self.image_size = image_size
        self.patch_size = patch_size
        self.hidden_dim = hidden_dim
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.feature_layer = feature_layer
        self.encoder = keras_hub.models.CLIPVisionEncoder(
            patch_size=patch_size,
            hidden_dim=hidden_dim,
            num_layers=num_layers,
            num_heads=num_heads,
            intermediate_dim=intermediate_dim,
            image_shape=(image_size, image_size, 3),
            data_format="channels_last",
            dtype=self.dtype_policy,
            name="encoder",
        )
        # keras-hub initializes them to zeros, so that all patches would share one
        # position.
        ids = self.encoder.embedding.position_ids
        ids.assign(np.arange(ids.shape[1])[None])
        self._blocks = self.encoder.encoder_layers[:blocks]

    def build(self, input_shape):
        self.built = True  # the encoder was built in the constructor

    def call(self, images):
        shape = ops.shape(images)
        x = ops.reshape(images, (-1, *images.shape[-3:]))
        x = self.encoder.pre_layer_norm(self.encoder.embedding(x))
        for block in self._blocks:
            x = block(x)
        return ops.reshape(x[:, 1:], self.compute_output_shape(shape))

    def compute_output_shape(self, input_shape):
        patches = (self.image_size // self.patch_size) ** 2
        return (*input_shape[:-3], patches, self.hidden_dim)

    def get_config(self):
        return {
            **super().get_config(),
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "hidden_dim": self.hidden_dim,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "intermediate_dim": self.intermediate_dim,
            "feature_layer": self.feature_layer,
        }
