"""The backbone of MobileVLM V2 and LLaVA-1.5: CLIP, a projector and Llama."""

from collections.abc import Sequence
from typing import Any

import keras
import keras_hub
from keras import ops

from keras_betakd.mobilevlm.projectors import make_projector
from keras_betakd.mobilevlm.vision import CLIPVisionTower

IMAGE_TOKEN_ID = -200
"""The id of image tokens in `token_ids`; it is not in the vocabulary."""


@keras.saving.register_keras_serializable(package="keras_betakd")
class ImageTokens(keras.layers.Layer):
    """Inserts image tokens into the embeddings of the text, in order.

    Call arguments:
        token_ids: int (B, T), `IMAGE_TOKEN_ID` at the positions of image tokens.
        text: (B, T, H), embeddings of the text; any values at the image tokens.
        image_features: (B, P, N, H), tokens of each of P images; a record takes as
            many as it has positions for, from the first on.

    Returns:
        (B, T, H).
    """

    def call(self, token_ids, text, image_features):
        is_image = ops.equal(token_ids, IMAGE_TOKEN_ID)
        order = ops.cumsum(ops.cast(is_image, "int32"), axis=1) - 1
        order = ops.maximum(order, 0)[..., None]
        width = image_features.shape[-1]
        tokens = ops.reshape(image_features, (ops.shape(text)[0], -1, width))
        tokens = ops.take_along_axis(tokens, order, axis=1)
        return ops.where(is_image[..., None], ops.cast(tokens, text.dtype), text)

    def compute_output_shape(self, token_ids_shape, text_shape, image_features_shape):
        return text_shape


@keras.saving.register_keras_serializable(package="keras_betakd")
class MobileVLMBackbone(keras_hub.models.Backbone):
    """CLIP vision tower, projector and Llama decoder, up to the last hidden states.

    The architecture of MobileVLM V2 (projector `"ldpnetv2"`) and of LLaVA-1.5
    (projector `"mlp2x_gelu"`). The vision tower is frozen from the start, as in every
    training stage of both.

    Args:
        vocabulary_size: int, V.
        num_layers: int, decoder blocks of the language model.
        num_query_heads, num_key_value_heads: int, attention heads of a block.
        hidden_dim: int, H, width of the language model.
        intermediate_dim: int, width of a block's feed-forward layer.
        vision_num_layers, vision_num_heads, vision_hidden_dim,
            vision_intermediate_dim: int, the same of the vision tower.
        image_size: int, S, height and width of an image in pixels.
        patch_size: int, height and width of a patch.
        vision_feature_layer: int, see `CLIPVisionTower`.
        projector_type: `"ldpnetv2"`, `"mlp<k>x_gelu"` or `"linear"`.
        image_grid_size: int, side of the grid of image tokens that `"ldpnetv2"`
            outputs; the others keep one token for each patch.
        rope_max_wavelength: int, base of the rotary positions.
        layer_norm_epsilon: float, of the RMS normalisations.
        dropout: float, of the decoder blocks.
        dtype: the dtype policy of all layers.
        **kwargs: as for any `keras_hub.models.Backbone`.

    Call arguments:
        inputs: dict of `"token_ids"`, int (B, T), with `IMAGE_TOKEN_ID` at every image
            token (`num_image_tokens` for each image); `"padding_mask"`, (B, T), 1 for
            tokens and 0 for padding, which is on the right; `"images"`,
            (B, P, S, S, 3), normalised images, any values where a record has fewer.

    Returns:
        (B, T, H), after the last normalisation.

    Example:

    ```python
    backbone = MobileVLMBackbone(
        vocabulary_size=32000,
        num_layers=24,
        num_query_heads=16,
        num_key_value_heads=16,
        hidden_dim=2048,
        intermediate_dim=5632,
        dtype="bfloat16",
    )
    ```

    Source: Chu et al. 2024 (MobileVLM V2, arXiv 2402.03766); Liu et al. 2024
    (LLaVA-1.5, arXiv 2310.03744).
    """

    def __init__(
        self,
        vocabulary_size: int,
        num_layers: int,
        num_query_heads: int,
        num_key_value_heads: int,
        hidden_dim: int,
        intermediate_dim: int,
        vision_num_layers: int = 24,
        vision_num_heads: int = 16,
        vision_hidden_dim: int = 1024,
        vision_intermediate_dim: int = 4096,
        image_size: int = 336,
        patch_size: int = 14,
        vision_feature_layer: int = -2,
        projector_type: str = "ldpnetv2",
        image_grid_size: int = 12,
        rope_max_wavelength: float = 10000,
        layer_norm_epsilon: float = 1e-6,
        dropout: float = 0,
        dtype: Any = None,
        **kwargs,
    ):
        # === Layers ===
        llama = keras_hub.models.LlamaBackbone(
            vocabulary_size=vocabulary_size,
            num_layers=num_layers,
            num_query_heads=num_query_heads,
            num_key_value_heads=num_key_value_heads,
            hidden_dim=hidden_dim,
            intermediate_dim=intermediate_dim,
            rope_max_wavelength=rope_max_wavelength,
            layer_norm_epsilon=layer_norm_epsilon,
            dropout=dropout,
            dtype=dtype,
        )
        self.token_embedding = llama.token_embedding
        self.transformer_layers = llama.transformer_layers
        self.layer_norm = llama.layer_norm
        self.vision_tower = CLIPVisionTower(
            image_size=image_size,
            patch_size=patch_size,
            hidden_dim=vision_hidden_dim,
            num_layers=vision_num_layers,
            num_heads=vision_num_heads,
            intermediate_dim=vision_intermediate_dim,
            feature_layer=vision_feature_layer,
            dtype=dtype,
            name="vision_tower",
        )
        self.projector = make_projector(
            projector_type, hidden_dim, image_grid_size, dtype=dtype, name="projector"
        )
        self.image_tokens = ImageTokens(dtype=dtype, name="image_tokens")

        # === Functional Model ===
        images = keras.Input((None, image_size, image_size, 3), name="images")
        token_ids = keras.Input((None,), dtype="int32", name="token_ids")
        padding_mask = keras.Input((None,), dtype="int32", name="padding_mask")
        image_features = self.projector(self.vision_tower(images))
        text = self.token_embedding(ops.maximum(token_ids, 0))
        x = self.image_tokens(token_ids, text, image_features)
        for layer in self.transformer_layers:
            x = layer(x, decoder_padding_mask=padding_mask)
        super().__init__(
            inputs={
                "images": images,
                "token_ids": token_ids,
                "padding_mask": padding_mask,
            },
            outputs=self.layer_norm(x),
            dtype=dtype,
            **kwargs,
        )
        self.vision_tower.trainable = False

        # === Config ===
        self.vocabulary_size = vocabulary_size
        self.num_layers = num_layers
        self.num_query_heads = num_query_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = hidden_dim // num_query_heads
        self.hidden_dim = hidden_dim
        self.intermediate_dim = intermediate_dim
        self.vision_num_layers = vision_num_layers
        self.vision_num_heads = vision_num_heads
        self.vision_hidden_dim = vision_hidden_dim
        self.vision_intermediate_dim = vision_intermediate_dim
        self.image_size = image_size
        self.patch_size = patch_size
        self.vision_feature_layer = vision_feature_layer
        self.projector_type = projector_type
        self.image_grid_size = image_grid_size
        self.rope_max_wavelength = rope_max_wavelength
        self.layer_norm_epsilon = layer_norm_epsilon
        self.dropout = dropout
        # For preprocessors, which leave room for as many tokens.
        self.num_image_tokens = image_features.shape[-2]

    def enable_lora(
        self, rank: int, target_layer_names: Sequence[str] | None = None
    ) -> None:
        """Adds LoRA to the language model, and freezes everything else.

        It is `keras_hub.models.Backbone.enable_lora` without the vision tower, whose
        attention has layers of the same names.
        """
        names = target_layer_names or self.default_lora_layer_names()
        tower = {id(layer) for layer in self.vision_tower._flatten_layers()}
        self.trainable = True
        layers = self._flatten_layers(include_self=False)
        for layer in layers:
            layer.trainable = False
        self._lora_enabled_layers, self._lora_rank = [], rank
        for i, layer in enumerate(layer for layer in layers if layer.weights):
            if layer.name in names and id(layer) not in tower:
                layer.trainable = True
                layer.enable_lora(rank)
                self._lora_enabled_layers.append(i)

    def get_config(self):
        names = (
            "vocabulary_size num_layers num_query_heads num_key_value_heads hidden_dim "
            "intermediate_dim vision_num_layers vision_num_heads vision_hidden_dim "
            "vision_intermediate_dim image_size patch_size vision_feature_layer "
            "projector_type image_grid_size rope_max_wavelength layer_norm_epsilon "
            "dropout"
        )
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in names.split()},
        }
