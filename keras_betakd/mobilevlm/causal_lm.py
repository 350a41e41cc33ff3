"""MobileVLM V2 and LLaVA-1.5 as a `keras_hub.models.CausalLM`, which generates text."""

import keras
import keras_hub
from keras import ops

from keras_betakd.mobilevlm.backbone import MobileVLMBackbone
from keras_betakd.mobilevlm.preprocessor import MobileVLMCausalLMPreprocessor


@keras.saving.register_keras_serializable(package="keras_betakd")
class MobileVLMCausalLM(keras_hub.models.CausalLM):
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

    def __init__(self, backbone, preprocessor=None, **kwargs):
        # === Layers ===
        self.backbone = backbone
        self.preprocessor = preprocessor

        # === Functional Model ===
        inputs = backbone.input
        outputs = backbone.token_embedding(backbone(inputs), reverse=True)
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)

    def call_with_cache(self, embeddings, cache, cache_update_index):
        """Runs the decoder on a part of the sequence; the cache holds what is before.

        Args:
            embeddings: (B, t, H), those of the part.
            cache: tuple with one (B, 2, T, heads, head width) for each block.
            cache_update_index: int, the position where the part begins.

        Returns:
            `(logits, hidden_states, cache)`: of the part (B, t, V) and (B, t, H), and
            the updated cache.
        """
        x, updated = embeddings, []
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

    def _embed_prompt(self, inputs):
        backbone, token_ids = self.backbone, inputs["token_ids"]
        x = backbone.token_embedding(ops.maximum(token_ids, 0))
        if "images" not in inputs:
            return x
        features = backbone.projector(backbone.vision_tower(inputs["images"]))
        return backbone.image_tokens(token_ids, x, features)

    def _empty_cache(self, embeddings):
        backbone = self.backbone
        batch_size, length, _ = ops.shape(embeddings)
        heads = backbone.num_key_value_heads
        width = backbone.hidden_dim // backbone.num_query_heads
        shape = (batch_size, 2, length, heads, width)
        return tuple(
            ops.zeros(shape, dtype=self.compute_dtype)
            for _ in range(backbone.num_layers)
        )

    def generate_step(self, inputs, stop_token_ids=None):
        """Decodes one batch; `generate` compiles this function.

        Args:
            inputs: those of `MobileVLMBackbone`, the prompts alone; `"images"` may be
                left out if no record has any.
            stop_token_ids: tuple of ids that end an answer.

        Returns:
            Dict of `"token_ids"` and `"padding_mask"`, (B, T).
        """
        token_ids, padding_mask = inputs["token_ids"], inputs["padding_mask"]
        is_prompt = ops.cast(padding_mask, "bool")
        prompt = self._embed_prompt(inputs)
        _, hidden_states, cache = self.call_with_cache(
            prompt, self._empty_cache(prompt), 0
        )

        def next(tokens, cache, index):
            start = (0, index - 1)
            size = (ops.shape(tokens)[0], 1)
            x = self.backbone.token_embedding(
                ops.maximum(ops.slice(tokens, start, size), 0)
            )
            # While the answer to a shorter prompt is decoded, a longer prompt is still
            # being read, possibly at an image token.
            given = ops.slice(prompt, (*start, 0), (*size, prompt.shape[-1]))
            x = ops.where(ops.slice(is_prompt, start, size)[..., None], given, x)
            logits, hidden_states, cache = self.call_with_cache(x, cache, index - 1)
            return ops.squeeze(logits, 1), ops.squeeze(hidden_states, 1), cache

        token_ids = self.sampler(
            next=next,
            prompt=token_ids,
            cache=cache,
            index=ops.min(ops.sum(ops.cast(padding_mask, "int32"), axis=-1)),
            mask=is_prompt,
            stop_token_ids=stop_token_ids,
            hidden_states=hidden_states,
            model=self,
        )
        return {
            "token_ids": token_ids,
            "padding_mask": _up_to_stop(token_ids, is_prompt, stop_token_ids),
        }

    def _normalize_generate_inputs(self, inputs):
        """Makes a single prompt, with its images, a batch of one."""
        if self.preprocessor is None or not isinstance(inputs, dict):
            return super()._normalize_generate_inputs(inputs)
        if not isinstance(inputs["prompts"], str):
            return [inputs], False
        inputs = {**inputs, "prompts": [inputs["prompts"]]}
        if "images" in inputs:
            inputs["images"] = [inputs["images"]]
        return [inputs], True


def _up_to_stop(token_ids, is_prompt, stop_token_ids):
    """True for the prompt and the answer up to its first stop token: bool (B, T)."""
    if stop_token_ids is None:
        return ops.ones_like(token_ids, dtype="bool")
    stops = ops.convert_to_tensor(stop_token_ids, dtype=token_ids.dtype)
    ends = ops.any(ops.equal(token_ids[..., None], stops), axis=-1)
    ends = ops.cast(ops.logical_and(ends, ops.logical_not(is_prompt)), "int32")
    return ops.equal(ops.cumsum(ends, axis=-1) - ends, 0)
