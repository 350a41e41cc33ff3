"""The backbone of Qwen2-VL, Qwen2.5-VL and Qwen3-VL, up to the last hidden states."""

from collections.abc import Sequence
from typing import Any

import keras
import keras_hub
from keras import ops

from keras_betakd.qwen_vl.decoder import CausalMask, DecoderBlock
from keras_betakd.qwen_vl.families import family_of
from keras_betakd.qwen_vl.image_tokens import PatchMerger, PlacedImageTokens
from keras_betakd.qwen_vl.rotary import RotaryAngles
from keras_betakd.qwen_vl.vision import QwenVLVisionEncoder

_CONFIG = (
    "family vocabulary_size num_layers num_query_heads num_key_value_heads head_dim "
    "hidden_dim intermediate_dim vision_num_layers vision_num_heads vision_hidden_dim "
    "vision_intermediate_dim patch_size temporal_patch_size spatial_merge_size "
    "window_size full_attention_layers num_position_embeddings deepstack_layers "
    "rope_max_wavelength rope_sections tie_word_embeddings layer_norm_epsilon"
).split()


@keras.saving.register_keras_serializable(package="keras_betakd")
class QwenVLBackbone(keras_hub.models.Backbone):
    """Vision encoder, patch merger and decoder of a Qwen vision-language model.

    Images have any size. A batch holds each padded to P patches, with its grid; all
    shapes are static, so that a compiled step serves every batch of the same P and M.

    Args:
        family: `"qwen2_vl"`, `"qwen2_5_vl"` or `"qwen3_vl"` (dense).
        vocabulary_size: int, V, rows of the embedding (padding rows included).
        num_layers: int, decoder blocks.
        num_query_heads, num_key_value_heads: int, attention heads of a block.
        head_dim: int, width of a head; heads * head_dim need not be `hidden_dim`.
        hidden_dim: int, H, width of the decoder.
        intermediate_dim: int, width of a block's feed-forward layer.
        vision_num_layers, vision_num_heads, vision_hidden_dim,
            vision_intermediate_dim: int, the same of the vision encoder.
        patch_size, temporal_patch_size, spatial_merge_size, window_size,
            full_attention_layers, num_position_embeddings: as for
            `QwenVLVisionEncoder`.
        deepstack_layers: numbers of vision blocks; the merged features of the k-th are
            added to the image tokens after decoder block k (Qwen3-VL).
        rope_max_wavelength: base of the rotary positions.
        rope_sections: three ints, rotary pairs of the axes time, row and column.
        tie_word_embeddings: whether the LM head is the embedding.
        layer_norm_epsilon: float, of the decoder's RMS normalisations.
        dtype: the dtype policy of all layers.
        **kwargs: as for any `keras_hub.models.Backbone`.

    Call arguments:
        inputs: dict of `"token_ids"`, int (B, T), one image token for each token of an
            image; `"padding_mask"`, (B, T), 1 for tokens and 0 for padding, on either
            side; `"position_ids"`, int (B, 3, T), positions in time, row and column;
            `"pixel_values"`, (B, M, P, 3 p^2), and `"image_grid_thw"`, int (B, M, 3),
            of up to M images; `"image_sources"`, int (B, T), the image token at each
            position (see `PlacedImageTokens`). `QwenVLCausalLMPreprocessor` makes all.

    Returns:
        (B, T, H), after the last normalisation.

    Example:

    ```python
    backbone = QwenVLBackbone(  # Qwen2.5-VL-3B
        family="qwen2_5_vl",
        vocabulary_size=151936,
        num_layers=36,
        num_query_heads=16,
        num_key_value_heads=2,
        head_dim=128,
        hidden_dim=2048,
        intermediate_dim=11008,
        vision_num_layers=32,
        vision_num_heads=16,
        vision_hidden_dim=1280,
        vision_intermediate_dim=3420,
        window_size=112,
        full_attention_layers=(7, 15, 23, 31),
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    ```

    Source: Bai et al. 2025 (Qwen2.5-VL, arXiv 2502.13923); Wang et al. 2024 (Qwen2-VL,
    arXiv 2409.12191); Bai et al. 2025 (Qwen3-VL, arXiv 2511.21631).
    """

    def __init__(
        self,
        family: str,
        vocabulary_size: int,
        num_layers: int,
        num_query_heads: int,
        num_key_value_heads: int,
        head_dim: int,
        hidden_dim: int,
        intermediate_dim: int,
        vision_num_layers: int,
        vision_num_heads: int,
        vision_hidden_dim: int,
        vision_intermediate_dim: int,
        patch_size: int = 14,
        temporal_patch_size: int = 2,
        spatial_merge_size: int = 2,
        window_size: int | None = None,
        full_attention_layers: Sequence[int] = (),
        num_position_embeddings: int = 0,
        deepstack_layers: Sequence[int] = (),
        rope_max_wavelength: float = 1000000,
        rope_sections: Sequence[int] = (16, 24, 24),
        tie_word_embeddings: bool = False,
        layer_norm_epsilon: float = 1e-6,
        dtype: Any = None,
        **kwargs,
    ):
        # === Config ===
        arguments = {name: value for name, value in locals().items() if name in _CONFIG}
        kind = family_of(family)
        if len(deepstack_layers) > num_layers:
            raise ValueError(
                "Each of `deepstack_layers` is added after a decoder block of its own. "
                f"Received: {len(deepstack_layers)} of them, num_layers={num_layers}"
            )

        # === Layers ===
        self.vision_encoder = QwenVLVisionEncoder(
            family,
            hidden_dim=vision_hidden_dim,
            num_layers=vision_num_layers,
            num_heads=vision_num_heads,
            intermediate_dim=vision_intermediate_dim,
            patch_size=patch_size,
            temporal_patch_size=temporal_patch_size,
            spatial_merge_size=spatial_merge_size,
            window_size=window_size,
            full_attention_layers=full_attention_layers,
            num_position_embeddings=num_position_embeddings,
            deepstack_layers=deepstack_layers,
            dtype=dtype,
            name="vision_encoder",
        )
        self.projector = PatchMerger(
            family, hidden_dim, spatial_merge_size, dtype=dtype, name="projector"
        )
        self.deepstack_projectors = [
            PatchMerger(
                family,
                hidden_dim,
                spatial_merge_size,
                norm_after_merging=True,
                dtype=dtype,
                name=f"deepstack_projector_{k}",
            )
            for k in range(len(deepstack_layers))
        ]
        self.token_embedding = keras.layers.ReversibleEmbedding(
            vocabulary_size,
            hidden_dim,
            tie_weights=tie_word_embeddings,
            dtype=dtype,
            name="token_embedding",
        )
        self.image_tokens = PlacedImageTokens(dtype=dtype, name="image_tokens")
        self.rotary_angles = RotaryAngles(
            head_dim,
            rope_sections,
            kind.interleaved_axes,
            rope_max_wavelength,
            dtype=dtype,
            name="rotary_angles",
        )
        self.causal_mask = CausalMask(dtype=dtype, name="causal_mask")
        self.transformer_layers = [
            DecoderBlock(
                num_query_heads,
                num_key_value_heads,
                head_dim,
                intermediate_dim,
                use_bias=kind.qkv_bias,
                qk_norm=kind.qk_norm,
                layer_norm_epsilon=layer_norm_epsilon,
                dtype=dtype,
                name=f"transformer_layer_{i}",
            )
            for i in range(num_layers)
        ]
        self.layer_norm = keras.layers.RMSNormalization(
            epsilon=layer_norm_epsilon, dtype=dtype, name="sequence_output_layernorm"
        )

        # === Functional Model ===
        width = 3 * patch_size**2
        inputs = {
            "token_ids": keras.Input((None,), dtype="int32", name="token_ids"),
            "padding_mask": keras.Input((None,), dtype="int32", name="padding_mask"),
            "position_ids": keras.Input((3, None), dtype="int32", name="position_ids"),
            "image_sources": keras.Input((None,), dtype="int32", name="image_sources"),
            "pixel_values": keras.Input((None, None, width), name="pixel_values"),
            "image_grid_thw": keras.Input(
                (None, 3), dtype="int32", name="image_grid_thw"
            ),
        }
        x, deepstack = self.embeddings(inputs)
        rotation = self.rotary_angles(inputs["position_ids"])
        mask = self.causal_mask(inputs["padding_mask"])
        for i, layer in enumerate(self.transformer_layers):
            x = layer(x, rotation, attention_mask=mask)
            if i < len(deepstack):
                x = ops.add(x, deepstack[i])
        super().__init__(
            inputs=inputs, outputs=self.layer_norm(x), dtype=dtype, **kwargs
        )
        for name, value in arguments.items():
            setattr(self, name, tuple(value) if isinstance(value, list) else value)

    def embeddings(self, inputs: dict[str, Any]) -> tuple[Any, list]:
        """The embeddings that enter the decoder, and what is added in it.

        Args:
            inputs: the inputs of the backbone.

        Returns:
            `(x, deepstack)`: (B, T, H), and for each of `deepstack_layers` a (B, T, H),
            zero but at image tokens.
        """
        x = self.token_embedding(inputs["token_ids"])
        sources = inputs["image_sources"]
        found = self.vision_encoder(inputs["pixel_values"], inputs["image_grid_thw"])
        tokens = self.image_tokens(self.projector(found[0]), sources)
        is_image = ops.expand_dims(ops.greater_equal(sources, 0), -1)
        deepstack = [
            self.image_tokens(merger(features), sources)
            for merger, features in zip(
                self.deepstack_projectors, found[1:], strict=True
            )
        ]
        return ops.where(is_image, tokens, x), deepstack

    def get_config(self):
        config = {name: getattr(self, name) for name in _CONFIG}
        return {**super().get_config(), **config}
