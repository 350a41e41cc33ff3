"""`StudentAnswers`: training data of which the student answers a share itself."""

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_betakd.on_policy.answers import DIRECTIONS, Answer, report_of, warning_of
from keras_betakd.on_policy.arguments import expect_counts
from keras_betakd.on_policy.batches import column_of, read_batch, unanswered
from keras_betakd.on_policy.decoder import AnswerDecoder, hashed_seed
from keras_betakd.on_policy.refusals import expect_room
from keras_betakd.on_policy.student_data import StudentData, given_weights
from keras_betakd.preprocessing.adapters import take_records
from keras_betakd.preprocessing.records import record_ids


class StudentAnswers(StudentData):
    """Training data of which the student answers a share of the prompts itself.

    Use it where a student makes mistakes that no given answer shows, and where there
    are prompts without answers. At the beginning of each epoch the student answers
    `on_policy * N` of the N records, drawn anew in each epoch, as it would where it is
    used: token by token, from its own distribution. Teacher and student are then
    compared at every token of these answers, the one that ends them included. They have
    no label, so the cross-entropy leaves them out (their `"task_weight"` is 0); the
    other records are trained on as ever. Of a conversation the last turn is answered,
    after the given answers to the others, which are not trained on in that epoch. The
    formula is in `keras_betakd.on_policy`.

    Start from a student that was trained on given answers first: one that answers
    nonsense learns from nonsense. Prefer `ReverseKLEnergy` or `JensenShannonEnergy`.
    Answers are drawn anew once an epoch; cut a long epoch by `EpochParts`, so that they
    are those of a student of 10 to 50 steps ago.

    A training that is resumed draws the same answers: they depend on the weights, the
    seed, the number of the epoch, the order of the data and `batch_size` alone.

    Args:
        data: raw records, or a data set of batches of them, as for `fit`: a
            `ScienceQADataset`, an `EpochParts`, any `keras.utils.PyDataset` that tells
            its length and can be read again. It is read in the thread of the training,
            whatever its `workers`: the answers must be there before. Records without a
            response, `None` or no `"responses"` at all, are always answered by the
            student.
        on_policy: the share of all records that is drawn to be answered by the student,
            from 0 to 1, or a function of the number of the epoch that returns it.
            Defaults to 0.5.
        max_new_tokens: the most tokens of an answer, the one that ends it included;
            longer ones are cut, and not ended. The preprocessor's `max_response_length`
            if `None`. Each costs a row of logits in both models.
        temperature, top_k, top_p: how tokens are drawn. By default from the whole
            distribution at temperature 1: a narrower one trains on other states than
            those that the student comes to. `top_k=1` takes the most likely one.
        seed: int from which records and tokens are drawn. Defaults to 0.
        batch_size: the number of prompts that are answered together; as many as a batch
            has if `None`. Keys and values of all of them are in memory meanwhile.

    Attributes:
        last: list of the `Answer`s of the last epoch.

    Raises:
        ValueError: an argument is not one of those above; and by `fit`, where a teacher
            is cached, tokenizers differ, an energy reads labels, a model has an encoder
            for its prompts, or `steps_per_epoch` is given.

    `History` and `logs` get `answers`, the number of answers of an epoch,
    `answer_tokens`, the mean number of their tokens, and `answers_ended`, the share of
    them that the student ended by itself.

    Example:

    ```python
    distiller.fit(records, epochs=3)  # a warm start, on given answers
    answers = StudentAnswers(records, on_policy=0.5)
    distiller.fit(answers, epochs=10)
    print(answers.last[0].text)
    ```

    Reference: Agarwal et al. 2024 (arXiv:2306.13649), where each batch is drawn to be
    answered by the student or not; here each record is.
    """

    unit = "answer"
    directions = DIRECTIONS

    def __init__(
        self,
        data: Any,
        on_policy: float | Callable[[int], float] = 0.5,
        max_new_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        batch_size: int | None = None,
    ):
        expect_counts(max_new_tokens=max_new_tokens)
        super().__init__(data, on_policy, temperature, top_k, top_p, seed, batch_size)
        self.max_new_tokens = max_new_tokens
        self._decoder = self._made_for = self._skipped = None

    def _prepare(self, distiller):
        """Makes the decoder, unless the one there is has been made for the same."""
        preprocessor, view = distiller.preprocessor, distiller.student_view
        tokens = self.max_new_tokens or preprocessor.max_response_length
        expect_room(tokens, preprocessor)
        skips = preprocessor.on_too_long == "skip"
        self._skipped = preprocessor.skipped if skips else None
        template = preprocessor.prompt_templates["student"]
        options = {"classes": distiller.vocabulary_size, **self.sampling}
        made_for = view, template, tokens, preprocessor.blind_student
        if self._decoder is None or self._made_for != made_for:
            self._made_for = made_for
            self._decoder = AnswerDecoder(*made_for, **options)

    def report(self):
        return report_of(self.last)

    def warning(self, epoch, count):
        return warning_of(self.last, epoch) if count > 1 else None

    def _changed(self, batch, index):
        tokens, lacking = column_of(batch, "response_tokens"), unanswered(batch)
        keys = "sample_weight", "task_weight"
        weights = {key: given_weights(batch, key) for key in keys}
        for row in range(len(tokens)):
            own = self._own.get((index, row))
            if own is None and lacking[row]:
                # Keras looks at batches before epochs; a prompt may have been skipped.
                own, weights["sample_weight"][row] = self._decoder.end, 0
            if own is not None:
                tokens[row], weights["task_weight"][row] = own, 0
        responses = column_of(batch, "responses")
        return {"responses": responses, "response_tokens": tokens, **weights}

    def _make(self, drawn):
        """Answers the prompts of the epoch."""
        names, decoder = {}, self._decoder
        decoder.begin(hashed_seed(self.seed, self._epoch))
        found = decoder.answered(self._prompts(drawn, names), self._group_size)
        # Closed at once where this ends early: the student's sampler is given back.
        with contextlib.closing(found):
            for key, tokens, ended in found:
                self._own[key] = tokens
                text = decoder.text_of(tokens[: len(tokens) - ended])
                self._add(Answer(names[key], tuple(tokens), text, ended))

    def _prompts(self, drawn, names):
        """Yields the prompts to answer, by batch and row, and notes their names.

        Args:
            drawn: for each batch the rows that were drawn.
            names: dict that gets the names of the records.
        """
        for index, rows in enumerate(drawn):
            rows, records = self._asked(index, rows)
            if rows:
                keys = [(index, row) for row in rows]
                names.update(zip(keys, record_ids(records, len(rows)), strict=True))
                # In place of the last answers, given or not.
                records["response_tokens"] = [self._decoder.end] * len(rows)
                yield from self._decoder.prompts(records, keys, self._skipped)

    def _asked(self, index, rows):
        """`(rows, records)` of a batch: those drawn, and those without a response."""
        if hasattr(self._bound, "part"):  # of `keras_betakd.data`, all with a response
            return rows, self._rows_of(index, rows) if rows else None
        batch = read_batch(self._bound, index)
        rows = sorted({*rows, *np.flatnonzero(unanswered(batch)).tolist()})
        return rows, take_records(batch, rows) if rows else None
