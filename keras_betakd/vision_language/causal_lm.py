"""`ImageTextCausalLM`: generates text from prompts with images, for its subclasses."""

from collections.abc import Sequence
from typing import Any

import keras_hub
from keras import ops


class ImageTextCausalLM(keras_hub.models.CausalLM):
    """Text and images in, text out; a subclass says what a prompt is made of.

    A subclass implements `_prompt` and `call_with_cache`. Its backbone has a
    `token_embedding`, and `num_layers`, `num_key_value_heads` and `head_dim` of its
    decoder. Images are encoded once, with the prompt.

    Args:
        backbone: the backbone.
        preprocessor: its preprocessor, or `None`.
        **kwargs: as for any `keras_hub.models.CausalLM`.
    """

    def __init__(
        self,
        backbone: keras_hub.models.Backbone,
        preprocessor: keras_hub.models.CausalLMPreprocessor | None = None,
        **kwargs,
    ):
        # === Layers ===
        self.backbone = backbone
        self.preprocessor = preprocessor

        # === Functional Model ===
        inputs = backbone.input
        outputs = backbone.token_embedding(backbone(inputs), reverse=True)
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)

    def call_with_cache(
        self, parts: dict[str, Any], cache: Any, cache_update_index: Any
    ) -> tuple:
        """Runs the decoder on a part of the sequence; the cache holds what is before.

        Args:
            parts: dict of arrays (B, t, ...), the part's positions of those that
                `_prompt` returns.
            cache: that of `_empty_cache`, or an updated one.
            cache_update_index: int, the position where the part begins.

        Returns:
            `(logits, hidden_states, cache)`: of the part (B, t, V) and (B, t, H), and
            the updated cache.
        """
        raise NotImplementedError

    def _prompt(self, inputs):
        """Dict of arrays (B, T, ...): all that the decoder reads, for each position.

        `"embeddings"`, (B, T, H), belong to the prompt's tokens and images, and are of
        no account behind it. Everything else is right for the tokens of an answer, too.
        """
        raise NotImplementedError

    def _empty_cache(self, batch_size, length):
        """Keys and values of as many sequences of as many tokens, none of them read.

        A tuple of one (B, 2, T, heads, head width) for each decoder block.
        """
        backbone = self.backbone
        heads, width = backbone.num_key_value_heads, backbone.head_dim
        shape = (batch_size, 2, length, heads, width)
        return tuple(
            ops.zeros(shape, dtype=self.compute_dtype)
            for _ in range(backbone.num_layers)
        )

    def generate_step(
        self, inputs: dict[str, Any], stop_token_ids: Sequence[int] | None = None
    ) -> dict[str, Any]:
        """Decodes one batch; `generate` compiles this function.

        Args:
            inputs: those of the backbone, the prompts alone; images may be left out if
                no record has any.
            stop_token_ids: tuple of ids that end an answer.

        Returns:
            Dict of `"token_ids"` and `"padding_mask"`, (B, T).
        """
        token_ids, padding_mask = inputs["token_ids"], inputs["padding_mask"]
        is_prompt = ops.cast(padding_mask, "bool")
        prompt = self._prompt(inputs)
        batch_size, length = ops.shape(token_ids)
        _, hidden_states, cache = self.call_with_cache(
            prompt, self._empty_cache(batch_size, length), 0
        )

        def next(tokens, cache, index):
            # A sampler may try several continuations of a prompt, each in its own row.
            beams = ops.shape(tokens)[0] // batch_size
            parts = {
                name: _repeated(_position(values, index - 1), beams)
                for name, values in {**prompt, "is_prompt": is_prompt}.items()
            }
            parts["embeddings"] = self._step_embeddings(
                _position(tokens, index - 1),
                parts.pop("is_prompt"),
                parts["embeddings"],
            )
            logits, hidden_states, cache = self.call_with_cache(parts, cache, index - 1)
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

    def _step_embeddings(self, token_ids, is_prompt, given):
        """The embeddings (B, 1, H) of one position: those given, or of its tokens.

        While the answer to a shorter prompt is decoded, a longer prompt is still being
        read, possibly at an image token.
        """
        # The ids of image tokens may be negative.
        x = self.backbone.token_embedding(ops.maximum(token_ids, 0))
        return ops.where(is_prompt[..., None], given, x)

    def _normalize_generate_inputs(self, inputs):
        """Makes a single prompt, with its images, a batch of one."""
        if self.preprocessor is None or not isinstance(inputs, dict):
            return super()._normalize_generate_inputs(inputs)
        if not isinstance(inputs.get("prompts"), str):
            return [inputs], False
        inputs = {**inputs, "prompts": [inputs["prompts"]]}
        if "images" in inputs:
            inputs["images"] = [inputs["images"]]
        return [inputs], True


def _position(values, index):
    """One position of an array (B, T, ...): (B, 1, ...)."""
    start = (0, index, *[0] * (len(values.shape) - 2))
    return ops.slice(values, start, (ops.shape(values)[0], 1, *values.shape[2:]))


def _repeated(values, times):
    """Each row of an array as often, one after another."""
    is_once = isinstance(times, int) and times == 1  # a tensor where it is not known
    return values if is_once else ops.repeat(values, times, axis=0)


def _up_to_stop(token_ids, is_prompt, stop_token_ids):
    """True for the prompt and the answer up to its first stop token: bool (B, T)."""
    if stop_token_ids is None:
        return ops.ones_like(token_ids, dtype="bool")
    stops = ops.convert_to_tensor(stop_token_ids, dtype=token_ids.dtype)
    ends = ops.any(ops.equal(token_ids[..., None], stops), axis=-1)
    ends = ops.cast(ops.logical_and(ends, ops.logical_not(is_prompt)), "int32")
    return ops.equal(ops.cumsum(ends, axis=-1) - ends, 0)
