"""`AnswerSampler`: keras-hub's decoding loop, in which each answer ends on its own.

Imports keras-hub, so it is imported where a model answers, not before.
"""

import keras
import keras_hub
from keras import ops

_NO_LIMIT = 2**30


class AnswerSampler(keras_hub.samplers.Sampler):
    """The base of samplers that decode until each answer of a batch has ended.

    An answer ends with a token that ends answers or with the most tokens of one,
    `limit`, counted from the end of its prompt. keras-hub's loop knows of no limit: it
    goes on to the length of the sequences, which is made for the longest prompt, until
    every row has a token that ends answers. And it takes one that pads a prompt for the
    end of an answer.

    Args:
        temperature: float, as for any `keras_hub.samplers.Sampler`.

    Attributes:
        limit: int32 variable, so that no other value has to be compiled.
        counts_in_numbers: whether the index of the loop is an int and no tensor, at
            which Keras on PyTorch updates a cache faster. Not every family takes one.
    """

    counts_in_numbers = False

    def __init__(self, temperature=1.0):
        super().__init__(temperature)
        self.limit = keras.Variable(_NO_LIMIT, dtype="int32", trainable=False)

    @property
    def variables(self):
        return [*super().variables, self.limit]

    def set_limit(self, tokens=None):
        """Sets the most tokens of an answer; `None` for as many as there is room."""
        self.limit.assign(_NO_LIMIT if tokens is None else tokens)

    def __call__(
        self,
        next,
        prompt,
        cache=None,
        index=0,
        mask=None,
        stop_token_ids=None,
        hidden_states=None,
        model=None,
        **kwargs,
    ):
        length = ops.shape(prompt)[-1]
        mask = ops.zeros_like(prompt) if mask is None else mask
        mask = ops.cast(mask, "bool")
        ends = ops.sum(ops.cast(mask, "int32"), axis=-1) + self.limit

        def is_unfinished(prompt, cache, index, unfinished):
            return ops.any(unfinished)

        def decode(prompt, cache, index, unfinished):
            logits, _, cache = next(prompt, cache, index)
            found = self.get_next_token(self.compute_probabilities(logits))
            is_prompt = mask[:, index]
            found = ops.cast(found, prompt.dtype)
            found = ops.where(is_prompt, prompt[:, index], found)
            prompt = ops.slice_update(prompt, [0, index], found[:, None])
            goes_on = ops.logical_or(is_prompt, ~_any_of(found, stop_token_ids or ()))
            goes_on = ops.logical_and(goes_on, index + 1 < ends)
            return prompt, cache, index + 1, ops.logical_and(unfinished, goes_on)

        cache = () if cache is None else cache
        state = prompt, cache, index, ops.ones_like(mask[:, 0])
        return self._looped(is_unfinished, decode, state, length, model)[0]

    def _looped(self, condition, body, state, length, model):
        """The state after the loop, the sequences first."""
        prompt, cache, index, unfinished = state
        if not self.counts_in_numbers:
            index = ops.cast(index, "int32")
            return self.run_loop(
                condition,
                body,
                model=model,
                loop_vars=(prompt, cache, index, unfinished),
                maximum_iterations=ops.cast(length, "int32") - index,
            )
        state = prompt, cache, int(index), unfinished
        while state[2] < length and condition(*state):
            state = body(*state)
        return state


class GreedyAnswerSampler(AnswerSampler):
    """Takes the most likely token each time, the first of those that are as likely."""

    def get_next_token(self, probabilities):
        return ops.argmax(probabilities, axis=-1)


def _any_of(tokens, token_ids):
    """Which tokens, int (B,), are one of a few ids: bool (B,)."""
    found = ops.zeros_like(tokens, dtype="bool")
    for token in token_ids:
        found = ops.logical_or(found, ops.equal(tokens, token))
    return found
