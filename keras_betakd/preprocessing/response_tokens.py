"""Answers given as token ids, which reach both models as they are.

A text that a student has sampled is often tokenized otherwise than it was written, so
the answers that it is to be trained on are given by their ids. A record of such an
answer is packed with a word in its place, by the preprocessor of its family; the ids
are then written over it.
"""

import numpy as np

from keras_betakd.preprocessing.checks import RecordsTooLong
from keras_betakd.preprocessing.records import PLACEHOLDER


def with_response_tokens(batch, tokens, padding, names, role):
    """Writes given token ids over the last answers of packed records.

    Args:
        batch: `(x, y, sample_weight)`, the packed records: inputs, labels (B, T)
            shifted by one, and their weights (B, T).
        tokens: for each record its answer, a list of ints with its end mark if it has
            one, or `None` where the packed one stays.
        padding: the id that fills a row.
        names: B strings that name the records in errors.
        role: `"teacher"` or `"student"`; errors name it.

    Returns:
        `(x, y, sample_weight)`. Of a conversation only the given answer has weight.

    Raises:
        RecordsTooLong: an answer does not fit behind its prompt.
        ValueError: the model has an encoder, or a prompt whose end is unknown.
    """
    x, y, weight = batch
    if "token_ids" not in x:
        raise ValueError(
            'Answers as token ids ("response_tokens", answers of the student) need a '
            f"model that reads prompt and answer as one sequence. The {role} has an "
            "encoder for its prompts. Give the answers as texts."
        )
    rows = [i for i, found in enumerate(tokens) if found is not None]
    starts = {i: _start(weight[i], names[i]) for i in rows}
    _expect_room(starts, tokens, weight.shape[1], names, role)
    x = {key: np.array(value) for key, value in x.items()}
    y, weight = np.array(y), np.array(weight, dtype="float32")
    length = weight.shape[1]
    masks = [x[key] for key in ("padding_mask", "response_mask") if key in x]
    for i, start in starts.items():
        answer = tokens[i]
        behind, end = start + 1, start + len(answer)
        y[i, start:] = padding
        y[i, start:end] = answer
        weight[i] = 0
        weight[i, start:end] = 1
        x["token_ids"][i, behind:] = y[i, start : length - 1]
        for mask in masks:
            mask[i, behind:] = np.arange(behind, length) <= end
    return x, y, weight


def _start(weight, name):
    """The position that predicts the first token of a row's last answer."""
    places = np.flatnonzero(weight)
    if len(places) == 0:
        raise ValueError(
            f"Record {name}: where its answer begins is not known, since the "
            f"preprocessor has no token for {PLACEHOLDER!r} and adds no end mark. Set "
            "`add_end_token=True`, or use a tokenizer that knows every letter."
        )
    gaps = np.flatnonzero(np.diff(places) > 1)
    return int(places[gaps[-1] + 1] if len(gaps) else places[0])


def _expect_room(starts, tokens, length, names, role):
    reasons = {
        i: f"Record {names[i]} needs a sequence_length of {start + len(tokens[i])} in "
        f"the {role}'s preprocessor, more than its {length}: its answer of "
        f"{len(tokens[i])} tokens would be cut off. Raise "
        f"`{role}.preprocessor.sequence_length`, or leave the record out."
        for i, start in starts.items()
        if start + len(tokens[i]) > length
    }
    if reasons:
        raise RecordsTooLong(reasons)
