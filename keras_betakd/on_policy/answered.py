"""Training data with the answers of a teacher: `AnsweredRecords`, `AnsweredDataset`."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_betakd.on_policy.answers import Answer
from keras_betakd.on_policy.batches import column_of, read_batch, with_columns
from keras_betakd.preprocessing.adapters import take_records
from keras_betakd.preprocessing.process_share import weighted
from keras_betakd.preprocessing.records import PlacedRecords, as_turns, id_texts

# What data sets may have beside Keras' interface; others ask for it by `hasattr`.
_OPTIONAL = ("epoch", "start_epoch", "has_batch", "size_of", "places_of", "endless")


class AnsweredRecords(PlacedRecords):
    """Raw records with the answers of a teacher; `answer_records` returns them.

    Args:
        records: dict of raw records with ids, whose other columns stay as they are.
        answers: dict of ids to `Answer`s.
        drops_cut: whether records are left out whose answer was cut.

    Attributes:
        answers: those of all records, also of those that are left out.

    Raises:
        ValueError: no answer is left.
    """

    def __init__(
        self,
        records: Mapping[str, Any],
        answers: Mapping[str, Answer],
        drops_cut: bool = False,
    ):
        names = id_texts(records["ids"])
        places = [f"number {row} of the data" for row in range(len(names))]
        found = PlacedRecords(with_answers(records, answers), places)
        if drops_cut and not all(answers[name].ended for name in names):
            rows = [row for row, name in enumerate(names) if answers[name].ended]
            found = take_records(found, rows)
        super().__init__(found, found.places)
        self.answers = answers


class AnsweredDataset(keras.utils.PyDataset):
    """Batches of a data set with the answers of a teacher; `answer_records` returns it.

    A batch is read when it is needed, and its answers are found by the records' ids.

    Args:
        data: a `PyDataset` of batches of raw records with ids. Its epochs are those of
            this one.
        answers: dict of ids to `Answer`s.
        drops_cut: whether records whose answer was cut have a sample weight of 0, so
            that batches keep their size.

    Attributes:
        answers: those of all records.

    Raises:
        ValueError: when a batch is read, a record without id or without answer.
    """

    def __init__(
        self,
        data: keras.utils.PyDataset,
        answers: Mapping[str, Answer],
        drops_cut: bool = False,
    ):
        super().__init__(
            workers=data.workers,
            use_multiprocessing=data.use_multiprocessing,
            max_queue_size=data.max_queue_size,
        )
        self.data = data
        self.answers = answers
        self.drops_cut = drops_cut

    def __getattr__(self, name):
        if name not in _OPTIONAL:
            raise AttributeError(f"`AnsweredDataset` has no attribute {name!r}.")
        return getattr(self.data, name)

    @property
    def num_batches(self):
        return self.data.num_batches

    def on_epoch_begin(self):
        self.data.on_epoch_begin()

    def on_epoch_end(self):
        self.data.on_epoch_end()

    def __getitem__(self, index):
        batch = read_batch(self.data, index)
        names = expect_ids(batch)
        unknown = [name for name in names if name not in self.answers]
        if unknown:
            raise ValueError(
                f"The data has a record with the id {unknown[0]!r}, which was not "
                "there when its prompts were answered. Call `answer_records` again."
            )
        found = with_columns(batch, with_answers(batch, self.answers))
        if not self.drops_cut:
            return found
        ended = np.array([self.answers[name].ended for name in names])
        return weighted(found, ended)


def expect_ids(records):
    """The ids of raw records as strings; raises a `ValueError` if there are none."""
    if records.get("ids") is None:
        raise ValueError(
            "Answers are kept and found by the ids of their records. Give each record "
            f'its own in "ids". Received: records with {sorted(records)}'
        )
    return id_texts(records["ids"], getattr(records, "places", None))


def with_answers(records, answers):
    """Raw records with the answers to their last turns, as texts and token ids.

    Args:
        records: dict of raw records with ids.
        answers: dict of ids to `Answer`s.
    """
    found = [answers[name] for name in expect_ids(records)]
    rows = zip(records["prompts"], column_of(records, "responses"), found, strict=True)
    return {
        **records,
        "responses": [_response(*row) for row in rows],
        "response_tokens": [answer.tokens for answer in found],
    }


def _response(prompt, given, answer):
    """The response with an answer to the last turn; earlier answers stay."""
    count = len(as_turns(prompt))
    if count == 1:
        return answer.text
    return [*as_turns(given)[: count - 1], answer.text]
