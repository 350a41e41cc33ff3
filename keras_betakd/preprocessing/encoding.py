"""`Encoder`: encodes raw records for one model of a pair."""

import dataclasses
from typing import Any

import numpy as np

from keras_betakd.preprocessing.changed_preprocessor import built
from keras_betakd.preprocessing.chat_template import ChatTemplate
from keras_betakd.preprocessing.chat_tokens import end_id
from keras_betakd.preprocessing.checks import (
    RecordsTooLong,
    check_lengths,
    check_same_vocabulary,
)
from keras_betakd.preprocessing.image_formats import format_of
from keras_betakd.preprocessing.model_inputs import model_inputs, training_inputs
from keras_betakd.preprocessing.records import to_numpy
from keras_betakd.preprocessing.response_tokens import with_response_tokens


@dataclasses.dataclass
class Encoded:
    """One model's side of a batch of B records with at most K answer tokens each.

    Attributes:
        inputs: what the model takes, a dict of arrays.
        labels: (B, K), the ids of the answer tokens; 0 in unused slots.
        positions: (B, K), the positions in the sequence that predict them.
        weights: (B, K), the weights of the labels, 0 in unused slots; `None` where
            they are not stored.
    """

    inputs: dict
    labels: Any
    positions: Any
    weights: Any = None

    def turns(self, row):
        """The slots of each answer of a conversation: a list of arrays of ints.

        Args:
            row: the number of the record in the batch.
        """
        slots = np.flatnonzero(self.weights[row] > 0)
        # Between two answers there is a prompt.
        gaps = np.flatnonzero(np.diff(self.positions[row][slots]) > 1) + 1
        return np.split(slots, gaps)


class Encoder:
    """Base class: encodes raw records for one model of a pair.

    Attributes:
        tokenizer: the model's tokenizer; `None` if it is not available, so that the
            answers cannot be aligned with those of another tokenizer.
    """

    tokenizer = None

    def encode(self, records, ids, max_response_length):
        """One model's side of a batch.

        Args:
            records: dict of raw records.
            ids: B strings that name the records in errors.
            max_response_length: K, the maximum number of answer tokens of a record.

        Returns:
            An `Encoded`.

        Raises:
            ValueError: a record that cannot be encoded. The message names it.
        """
        raise NotImplementedError

    def check_vocabulary(self, student_preprocessor):
        """Checks that the student's tokens and end mark are this model's.

        Raises:
            ValueError: they are not.
        """
        raise NotImplementedError

    def expect_template(self, prompt_template):
        """Checks that answers were encoded with this template.

        Args:
            prompt_template: as for `DistillationPreprocessor`.

        Raises:
            ValueError: they were encoded with another.
        """
        raise NotImplementedError

    def image_form(self):
        """A value that is equal for encoders that make equal arrays of equal images.

        `None` if there are no images to be shared with another model.
        """
        return None


class ModelEncoder(Encoder):
    """Encodes records with the keras-hub preprocessor of a model.

    Args:
        preprocessor: a keras-hub preprocessor of a `CausalLM` or `Seq2SeqLM`.
        role: `"teacher"` or `"student"`; errors name it.
        prompt_template: the template of its prompts, as for `model_inputs`.
        trained_turns: `"all"` or `"last"`.
    """

    def __init__(self, preprocessor, role, prompt_template=None, trained_turns="all"):
        self.preprocessor = preprocessor
        self.role = role
        self.prompt_template = prompt_template
        self.trained_turns = trained_turns

    @property
    def tokenizer(self):
        return self.preprocessor.tokenizer

    def encode(self, records, ids, max_response_length):
        inputs = model_inputs(
            self.preprocessor, records, self.prompt_template, self.trained_turns
        )
        # Not before the records were found good: what is built takes no new converter.
        preprocessor = built(self.preprocessor)
        x, y, weight = to_numpy(training_inputs(preprocessor, inputs))
        check_lengths(preprocessor, inputs, (x, weight), ids, self.role)
        tokens = records.get("response_tokens") or [None] * len(ids)
        if any(row is not None for row in tokens):
            padding = self.tokenizer.pad_token_id or 0
            batch = (x, y, weight), tokens, padding
            x, y, weight = with_response_tokens(*batch, ids, self.role)
        positions, weights = _answer_slots(weight, max_response_length, ids)
        labels = np.where(weights > 0, np.take_along_axis(y, positions, 1), 0)
        is_text = np.array([row is None for row in tokens])
        _expect_answers(labels, weights, self._end, ids, is_text)
        return Encoded(x, labels, positions, weights)

    @property
    def _end(self):
        """The token that ends an answer."""
        if isinstance(self.prompt_template, ChatTemplate):
            return end_id(self.prompt_template, self.tokenizer)
        return self.tokenizer.end_token_id

    def check_vocabulary(self, student_preprocessor):
        student = student_preprocessor
        if self.tokenizer is not student.tokenizer:
            check_same_vocabulary(self.tokenizer, student.tokenizer)
        # Flan-T5's has no such setting: it always ends them.
        ends = [getattr(p, "add_end_token", True) for p in (self.preprocessor, student)]
        if ends[0] != ends[1]:
            raise ValueError(
                "Teacher and student must both end their answers, or both not. "
                f"Received: teacher add_end_token={ends[0]}, student "
                f"add_end_token={ends[1]}"
            )

    def image_form(self):
        return format_of(self.preprocessor).image_form()


def _expect_answers(labels, weights, end, ids, is_text):
    """Raises a `ValueError` for an answer that has no token but its end mark.

    Tokenizers drop some characters, so that a text may be left without any.
    """
    counts = (weights > 0).sum(axis=1)
    empty = (counts == 0) | ((counts == 1) & (labels[:, 0] == end))
    empty &= is_text  # a student may well have nothing to say
    if empty.any():
        raise ValueError(
            f"Record {ids[int(np.argmax(empty))]}: its response has no token of this "
            "model's vocabulary, so that only the end mark would be trained. Give an "
            "answer of other characters, or leave the record out."
        )


def _answer_slots(weight, size, ids):
    """The positions and weights, (B, K) each, of the tokens with weight, K = `size`.

    Args:
        weight: (B, T), the weights of all tokens.
        size: K, the maximum number of tokens with weight in a row.
        ids: B strings that name the records in errors.
    """
    positions = np.zeros((len(weight), size), dtype="int32")
    weights = np.zeros((len(weight), size), dtype="float32")
    found = [np.flatnonzero(row) for row in weight]
    reasons = {
        i: f"The answer of record {ids[i]} has {len(places)} tokens with its end mark, "
        f"more than max_response_length={size}. Raise `max_response_length`, or leave "
        "the record out."
        for i, places in enumerate(found)
        if len(places) > size
    }
    if reasons:
        raise RecordsTooLong(reasons)
    for i, places in enumerate(found):
        positions[i, : len(places)] = places
        weights[i, : len(places)] = weight[i, places]
    return positions, weights
