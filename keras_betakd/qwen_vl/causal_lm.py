"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL as a `keras_hub.models.CausalLM`."""

from typing import Any

import keras
from keras import ops

from keras_betakd.qwen_vl.backbone import QwenVLBackbone
from keras_betakd.qwen_vl.preprocessor import QwenVLCausalLMPreprocessor
from keras_betakd.vision_language.causal_lm import ImageTextCausalLM


@keras.saving.register_keras_serializable(package="keras_betakd")
class QwenVLCausalLM(ImageTextCausalLM):
    """A Qwen vision-language model: text and images in, text out.

    It is trained, decoded, saved, quantised and given LoRA like any
    `keras_hub.models.CausalLM`. Videos are not supported.

    Args:
        backbone: a `QwenVLBackbone`.
        preprocessor: a `QwenVLCausalLMPreprocessor`, or `None` for inputs that are
            arrays already.
        **kwargs: as for any `keras_hub.models.CausalLM`.

    Call arguments:
        inputs: those of `QwenVLBackbone`.

    Returns:
        Logits, (B, T, V).

    Example:

    ```python
    from keras_betakd.qwen_vl import load_qwen_vl

    model = load_qwen_vl("Qwen2.5-VL-3B-Instruct", dtype="bfloat16")
    model.compile(sampler="greedy")
    model.generate({"images": [image], "prompts": ["<image>What is this?"]})
    ```

    Source: Bai et al. 2025 (Qwen2.5-VL, arXiv 2502.13923); Wang et al. 2024 (Qwen2-VL,
    arXiv 2409.12191); Bai et al. 2025 (Qwen3-VL, arXiv 2511.21631).
    """

    backbone_cls = QwenVLBackbone
    preprocessor_cls = QwenVLCausalLMPreprocessor

    def call_with_cache(
        self, parts: dict[str, Any], cache: Any, cache_update_index: Any
    ) -> tuple:
        backbone = self.backbone
        x, rotation = parts["embeddings"], (parts["cosine"], parts["sine"])
        mask = _cached_mask(ops.shape(x)[1], ops.shape(cache[0])[2], cache_update_index)
        updated = []
        for i, layer in enumerate(backbone.transformer_layers):
            x, layer_cache = layer(
                x,
                rotation,
                attention_mask=mask,
                cache=cache[i],
                cache_update_index=cache_update_index,
            )
            updated.append(layer_cache)
            if i < len(backbone.deepstack_layers):
                x = x + parts[f"deepstack_{i}"]
        hidden_states = backbone.layer_norm(x)
        logits = backbone.token_embedding(hidden_states, reverse=True)
        return logits, hidden_states, tuple(updated)

    def _prompt(self, inputs):
        backbone = self.backbone
        token_ids = inputs["token_ids"]
        positions = inputs.get("position_ids")
        if positions is None:
            places = ops.arange(ops.shape(token_ids)[1], dtype="int32")
            shape = (ops.shape(token_ids)[0], 3, ops.shape(token_ids)[1])
            positions = ops.broadcast_to(places, shape)
        cosine, sine = backbone.rotary_angles(positions)
        parts = {"cosine": cosine, "sine": sine}
        if "pixel_values" not in inputs:
            x = parts["embeddings"] = backbone.token_embedding(token_ids)
            deepstack = [ops.zeros_like(x) for _ in backbone.deepstack_layers]
        else:
            parts["embeddings"], deepstack = backbone.embeddings(inputs)
        parts.update({f"deepstack_{i}": x for i, x in enumerate(deepstack)})
        return parts


def _cached_mask(count, length, index):
    """Which of `length` cached positions those from `index` on see: (1, count, length).

    Prompts are padded on the right, so that all that comes before is no padding.
    """
    rows = ops.arange(count, dtype="int32") + index
    return ops.arange(length, dtype="int32")[None, None] <= rows[None, :, None]
