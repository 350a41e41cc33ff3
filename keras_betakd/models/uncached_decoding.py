"""Greedy decoding without a cache, for models whose cached decoding is incorrect."""

import keras
import numpy as np
from keras import ops

from keras_betakd.models.chat_generation import stop_tokens


class NextToken(keras.Model):
    """What follows each sequence of a batch: the most likely token, or the logits.

    Args:
        view: A `CausalLMView`.
        as_logits: Whether the logits of the next token are returned.

    Call arguments:
        inputs: Dict of `"x"`, the inputs of the view's model, and `"last"`, int (B,),
            the position of each sequence's last token in its text.

    Returns:
        Int (B,), token ids; or float32 (B, V).
    """

    def __init__(self, view, as_logits=False):
        super().__init__()
        self.network = view.computing_layers
        self._view = view
        self._as_logits = as_logits

    def call(self, inputs):
        hidden = self._view.hidden_states(inputs["x"], training=False)
        last = self._view.row_positions(inputs["last"])
        rows = ops.take_along_axis(hidden, last[:, None, None], axis=1)
        logits = self._view.head(rows)[:, 0]
        if self._as_logits:
            return ops.cast(logits, "float32")
        return ops.argmax(logits, axis=-1)


def uncached_decoder(model, max_new_tokens=None):
    """Makes a function that decodes batches of prompts to texts.

    Args:
        model: A keras-hub `CausalLM` with its preprocessor.
        max_new_tokens: Tokens of an answer; by default as many as the length leaves.

    Returns:
        A function of `model_inputs` and the length of the sequences, which returns the
        answers as a list of strings.
    """
    tokenizer, decode = model.preprocessor.tokenizer, token_decoder(model)

    def answers(inputs, length):
        stop = stop_tokens(model.preprocessor, inputs)
        token_ids, start, end = decode(inputs, length, stop, max_new_tokens)
        rows = zip(token_ids, start, end, strict=True)
        return [_text(tokenizer, ids[first:last]) for ids, first, last in rows]

    return answers


def token_decoder(model, choose=None):
    """Makes a function that decodes batches of prompts to token ids.

    At each step it runs the model on the whole sequences.

    Args:
        model: A keras-hub `CausalLM` with its preprocessor.
        choose: Function of logits (B, V) that returns the next tokens, int (B,); the
            most likely ones if `None`.

    Returns:
        A function of `model_inputs`, the length of the sequences, the token ids that
        end an answer, and the most tokens of an answer (`None` for as many as there is
        room for). It returns token ids (B, length), and the ends of the prompts and of
        the answers, both int (B,). A token that ends an answer is written behind it
        where there is room.
    """
    from keras_betakd.models.views import view_of
    from keras_betakd.preprocessing.image_formats import format_of

    family = format_of(model.preprocessor)
    next_token = NextToken(view_of(model), as_logits=choose is not None)

    def decode(inputs, length, stop_token_ids, max_new_tokens=None):
        x = family.prompts_alone(inputs, length)
        start = x["padding_mask"].sum(axis=1)
        limit = np.minimum(start + (max_new_tokens or length), length)
        end = start.copy()
        unfinished = end < limit
        while unfinished.any():
            last = (end - 1).astype("int32")
            found = next_token.predict_on_batch({"x": x, "last": last})
            found = found if choose is None else choose(found)
            open_rows = np.flatnonzero(unfinished)
            x["token_ids"][open_rows, end[open_rows]] = found[open_rows]
            unfinished &= ~np.isin(found, stop_token_ids)
            rows = np.flatnonzero(unfinished)
            x["padding_mask"][rows, end[rows]] = True
            end[rows] += 1
            unfinished &= end < limit
        return x["token_ids"], start, end

    return decode


def _text(tokenizer, ids):
    return str(tokenizer.detokenize(ids.tolist())) if len(ids) else ""
