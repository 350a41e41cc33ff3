"""MobileVLM V2 and LLaVA-1.5 as a `keras_hub.models.CausalLM`, which generates text."""

from typing import Any

import keras
from keras import ops

from keras_betakd.mobilevlm.backbone import MobileVLMBackbone
from keras_betakd.mobilevlm.preprocessor import MobileVLMCausalLMPreprocessor
from keras_betakd.vision_language.causal_lm import ImageTextCausalLM


@keras.saving.register_keras_serializable(package="keras_betakd")
class MobileVLMCausalLM(ImageTextCausalLM):
    """MobileVLM V2 or LLaVA-1.5: text and images in, text out.

    It is trained, decoded, saved and quantised like any `keras_hub.models.CausalLM`.
    The vision tower is frozen.

    Args:
        backbone: a `MobileVLMBackbone`.
        preprocessor: a `MobileVLMCausalLMPreprocessor`, or `None` for inputs that are
            token ids already.
        **kwargs: as for any `keras_hub.models.CausalLM`.

    Call arguments:
        inputs: those of `MobileVLMBackbone`.

    Returns:
        Logits, (B, T, V).

    Example:

    ```python
    from keras_betakd.mobilevlm import load_mobilevlm

    model = load_mobilevlm("MobileVLM_V2-1.7B", dtype="bfloat16")
    model.compile(sampler="greedy")
    model.generate({"images": [image], "prompts": ["<image>\\nWhat is this?"]})
    ```

    Source: Chu et al. 2024 (MobileVLM V2, arXiv 2402.03766); Liu et al. 2024
    (LLaVA-1.5, arXiv 2310.03744).
    """

    backbone_cls = MobileVLMBackbone
    preprocessor_cls = MobileVLMCausalLMPreprocessor

    def call_with_cache(
        self, parts: dict[str, Any], cache: Any, cache_update_index: Any
    ) -> tuple:
        """Runs the decoder on a part of the sequence; the cache holds what is before.

        Args:
            parts: dict of `"embeddings"`, (B, t, H), those of the part.
            cache: tuple with one (B, 2, T, heads, head width) for each block.
            cache_update_index: int, the position where the part begins.

        Returns:
            `(logits, hidden_states, cache)`: of the part (B, t, V) and (B, t, H), and
            the updated cache.
        """
        x, updated = parts["embeddings"], []
        for layer, layer_cache in zip(
            self.backbone.transformer_layers, cache, strict=True
        ):
            x, layer_cache = layer(
                x,
                self_attention_cache=layer_cache,
                self_attention_cache_update_index=cache_update_index,
            )
            updated.append(layer_cache)
        hidden_states = self.backbone.layer_norm(x)
        logits = self.backbone.token_embedding(hidden_states, reverse=True)
        return logits, hidden_states, tuple(updated)

    def _prompt(self, inputs):
        backbone, token_ids = self.backbone, inputs["token_ids"]
        x = backbone.token_embedding(ops.maximum(token_ids, 0))
        if "images" not in inputs:
            return {"embeddings": x}
        features = backbone.projector(backbone.vision_tower(inputs["images"]))
        return {"embeddings": backbone.image_tokens(token_ids, x, features)}
