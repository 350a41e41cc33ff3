"""Greedy decoding without a cache, for models whose cache cannot be relied on."""

import keras
import numpy as np
from keras import ops


class NextToken(keras.Model):
    """The likeliest token after each prompt of a batch.

    Args:
        view: a `CausalLMView`.
    """

    def __init__(self, view):
        super().__init__()
        self.network = view.model
        self._view = view

    def call(self, inputs):
        hidden = self._view.hidden_states(inputs["x"], training=False)
        rows = ops.take_along_axis(hidden, inputs["last"][:, None, None], axis=1)
        return ops.argmax(self._view.head(rows)[:, 0], axis=-1)


def recomputed_answers(model, max_new_tokens=None):
    """A function that answers batches of prompts.

    Args:
        model: a keras-hub `CausalLM` with its preprocessor.
        max_new_tokens: tokens of an answer; as many as there is room for if `None`.

    Returns:
        A function of `model_inputs` and the length of the sequences, which returns the
        answers as a list of strings.
    """
    from keras_betakd.models.views import view_of
    from keras_betakd.preprocessing.image_formats import format_of

    family, tokenizer = format_of(model.preprocessor), model.preprocessor.tokenizer
    step = NextToken(view_of(model))

    def answer(inputs, length):
        x = family.prompts_alone(inputs, length)
        start = x["padding_mask"].sum(axis=1)
        limit = np.minimum(start + (max_new_tokens or length), length)
        end = start.copy()
        going = end < limit
        while going.any():
            found = step.predict_on_batch({"x": x, "last": (end - 1).astype("int32")})
            going &= found != tokenizer.end_token_id
            rows = np.flatnonzero(going)
            x["token_ids"][rows, end[rows]] = found[rows]
            x["padding_mask"][rows, end[rows]] = True
            end[rows] += 1
            going &= end < limit
        spans = zip(x["token_ids"], start, end, strict=True)
        return [_text(tokenizer, ids[a:b]) for ids, a, b in spans]

    return answer


def _text(tokenizer, ids):
    return str(tokenizer.detokenize(ids.tolist())) if len(ids) else ""
