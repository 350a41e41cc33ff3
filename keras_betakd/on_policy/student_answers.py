"""`StudentAnswers`: training data of which the student answers a share itself."""

import contextlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_betakd.on_policy.answers import Answer
from keras_betakd.on_policy.arguments import (
    expect_counts,
    expect_sampling,
    expect_seed,
)
from keras_betakd.on_policy.batches import (
    column_of,
    read_batch,
    size_of,
    unanswered,
    with_columns,
)
from keras_betakd.on_policy.decoder import AnswerDecoder, hashed_seed
from keras_betakd.on_policy.drawing import drawn_rows, expect_share
from keras_betakd.on_policy.refusals import expect_on_policy, expect_readable_anew
from keras_betakd.preprocessing.adapters import as_dataset, take_records
from keras_betakd.preprocessing.records import record_ids

_UNBOUND = (
    "`StudentAnswers` must be the training data that `fit` is given: only there is a "
    "student that answers. Give other methods, `validation_data` and a `ProcessShare` "
    "the data that it was made of."
)


class StudentAnswers(keras.utils.PyDataset):
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

    # Batches that were looked at before an epoch are not those of the epoch.
    changes_at_epochs = True

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
        expect_share(on_policy)
        expect_seed(seed)
        expect_counts(max_new_tokens=max_new_tokens, batch_size=batch_size)
        expect_sampling(temperature, top_k, top_p)
        # One worker: the queue of several would be filled before the epoch's answers.
        super().__init__(workers=1, use_multiprocessing=False)
        self.data = data
        self.on_policy = on_policy
        self.max_new_tokens = max_new_tokens
        self.sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        self.seed = seed
        self.batch_size = batch_size
        self.last: list[Answer] = []
        self._dataset = self._decoder = None
        self._epoch = 0
        self._is_bound = False
        # Of the records that were answered, by batch and row.
        self._tokens: dict[tuple[int, int], Any] = {}
        self._due = False
        self._answered = self._made_for = self._made_of = None

    def bind(self, distiller, batch_size=None, shuffle=True, steps=None, verbose=0):
        """Lets the student of a distiller answer; `fit` calls it.

        Args:
            distiller: the `BetaKDDistiller`.
            batch_size, shuffle, steps, verbose: as for `fit`.
        """
        length = distiller.preprocessor and distiller.preprocessor.max_response_length
        tokens = self.max_new_tokens or length
        expect_on_policy(distiller, tokens, steps)
        # Records that were shuffled before go on with their next epoch.
        if self._dataset is None or self._made_of != (batch_size, shuffle):
            dataset = as_dataset(self.data, batch_size, shuffle)
            expect_readable_anew(dataset, self.data)
            self._dataset, self._epoch = dataset, 0
            self._made_of = batch_size, shuffle
        self._epoch = getattr(self._dataset, "epoch", self._epoch)
        self._iterations = distiller.optimizer.iterations
        self._shows_progress = verbose in ("auto", 1)
        self._answered, self._tokens = None, {}
        skips = distiller.preprocessor.on_too_long == "skip"
        self._skipped = distiller.preprocessor.skipped if skips else None
        self._make_decoder(distiller, tokens)
        self._is_bound = True

    def release(self):
        """Ends what `bind` began; `fit` calls it. `last` stays."""
        self._is_bound = False

    def _make_decoder(self, distiller, tokens):
        """Makes the decoder, unless the one there is has been made for the same."""
        preprocessor, view = distiller.preprocessor, distiller.student_view
        template = preprocessor.prompt_templates["student"]
        options = {"classes": distiller.vocabulary_size, **self.sampling}
        made_for = view, template, tokens, preprocessor.blind_student
        if self._decoder is None or self._made_for != made_for:
            self._made_for = made_for
            self._decoder = AnswerDecoder(*made_for, **options)

    # The epochs

    @property
    def epoch(self):
        """The number of the epoch, as the data counts it."""
        return self._epoch

    def start_epoch(self, epoch):
        """Goes to an epoch, by its number; its prompts are answered when it begins."""
        self._epoch = epoch
        if hasattr(self._bound, "start_epoch"):
            self._bound.start_epoch(epoch)
        self._due = True

    def on_epoch_begin(self):
        self._bound.on_epoch_begin()
        if self._due:
            self._answer()

    def on_epoch_end(self):
        self._bound.on_epoch_end()
        self._epoch = getattr(self._bound, "epoch", self._epoch + 1)

    # The batches

    @property
    def _bound(self):
        if not self._is_bound:
            raise ValueError(_UNBOUND)
        return self._dataset

    @property
    def num_batches(self):
        return self._bound.num_batches

    def __getitem__(self, index):
        batch = read_batch(self._bound, index)
        tokens, lacking = column_of(batch, "response_tokens"), unanswered(batch)
        keys = "sample_weight", "task_weight"
        weights = {key: _weights(batch, key) for key in keys}
        for row in range(len(tokens)):
            own = self._tokens.get((index, row))
            if own is None and lacking[row]:
                # Keras looks at batches before epochs; a prompt may have been skipped.
                own, weights["sample_weight"][row] = self._decoder.end, 0
            if own is not None:
                tokens[row], weights["task_weight"][row] = own, 0
        responses = column_of(batch, "responses")
        columns = {"responses": responses, "response_tokens": tokens, **weights}
        return with_columns(batch, columns)

    def places_of(self, index):
        """The places of a batch's records in the data."""
        find = getattr(self._bound, "places_of", None)
        if find is not None:
            return find(index)
        return [f"{row} of batch {index}" for row in range(size_of(self._bound, index))]

    # The answers

    def _answer(self):
        """Answers the prompts of the epoch, once for the weights as they are."""
        self._due = False
        state = self._epoch, int(keras.ops.convert_to_numpy(self._iterations))
        if state == self._answered:
            return
        self._tokens, self.last, names = {}, [], {}
        decoder = self._decoder
        decoder.begin(hashed_seed(self.seed, self._epoch))
        drawn = self._drawn()
        bar = keras.utils.Progbar(sum(map(len, drawn)), unit_name="answer")
        size = self.batch_size or size_of(self._bound, 0)
        found = decoder.answered(self._prompts(drawn, names), size)
        # Closed at once where this ends early: the student's sampler is given back.
        with contextlib.closing(found):
            for key, tokens, ended in found:
                self._tokens[key] = tokens
                text = decoder.text_of(tokens[: len(tokens) - ended])
                self.last.append(Answer(names[key], tuple(tokens), text, ended))
                self._show(bar, finalize=False)
        self._show(bar, finalize=True)
        self._answered = state

    def _show(self, bar, finalize):
        count = len(self.last)
        if self._shows_progress and count:
            bar.target = count if finalize else max(bar.target, count)
            bar.update(count, finalize=finalize)

    def _drawn(self):
        """For each batch the rows that are drawn to be answered."""
        share = self.on_policy
        if callable(share):
            share = expect_share(share(self._epoch), self._epoch)
        sizes = [size_of(self._bound, index) for index in range(self.num_batches)]
        return drawn_rows(share, sizes, self.seed, self._epoch)

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
            return rows, self._bound.part(index, rows) if rows else None
        batch = read_batch(self._bound, index)
        rows = sorted({*rows, *np.flatnonzero(unanswered(batch)).tolist()})
        return rows, take_records(batch, rows) if rows else None


def _weights(batch, key):
    """A column of weights as an array that may be changed, of ones if there is none."""
    given = batch.get(key)
    if given is None:
        return np.ones(len(batch["prompts"]), "float32")
    return np.array(given)


@contextlib.contextmanager
def released(answers):
    """Within, a `StudentAnswers` is bound, or `None`; it is released in the end."""
    try:
        yield
    finally:
        if answers is not None:
            answers.release()
