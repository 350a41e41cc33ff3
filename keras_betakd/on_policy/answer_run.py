"""`AnswerRun`: a model answers the prompts of raw records, and answers are kept."""

import contextlib
import itertools

import keras
import numpy as np

from keras_betakd import fingerprints
from keras_betakd.journal import AnswerJournal
from keras_betakd.on_policy.answered import expect_ids
from keras_betakd.on_policy.answers import Answer
from keras_betakd.on_policy.batches import record_parts
from keras_betakd.on_policy.decoder import hashed_seed
from keras_betakd.preprocessing.prompts import grouped
from keras_betakd.preprocessing.record_checks import checked_records


class RecordJournal(AnswerJournal):
    """The answers of `answer_records`: a line has an answer's text and token ids."""

    user = "answer_records"
    argument = "`path`"
    again = "the same call"


class AnswerRun:
    """Answers the prompts of a data set that a journal does not hold yet.

    Prompts are always decoded in the same groups, and each group with a seed of its
    own, so that an answer does not depend on where a run was stopped.

    Args:
        decoder: the `AnswerDecoder`.
        journal: the `RecordJournal`, open.
        batch_size: the number of prompts that are decoded together.
        seed: what tokens are drawn from.

    Attributes:
        answers: dict of ids to `Answer`s.

    Raises:
        ValueError: a line of the journal is none of an answer.
    """

    def __init__(self, decoder, journal, batch_size, seed):
        self.decoder = decoder
        self.journal = journal
        self.batch_size = batch_size
        self.seed = seed
        self.answers = {}
        self._digests = {}  # of the records that were answered in an earlier run
        self._asked = {}  # the digests of all records that were read
        for number, line in enumerate(journal.lines, 1):
            self._recall(line, number)

    def _recall(self, line, number):
        """Takes an answer from a line of the journal."""
        where = f"Line {number} of '{self.journal.path}'"
        if not _is_answer(line):
            raise ValueError(
                f"{where} is none that `answer_records` writes: it was changed. Take "
                "it out, to have its record answered again. "
                f"Received: {str(line)!r:.200}"
            )
        name = line["answer_id"]
        if name in self.answers:
            raise ValueError(
                f"{where} answers record {name!r}, as an earlier one does. Take one of "
                "them out, or both, to have it answered again."
            )
        self._add(line)
        self._digests[name] = line["metadata"]["record"]

    def _add(self, line):
        tokens = np.array(line["response_tokens"], "int32")
        name = line["answer_id"]
        self.answers[name] = Answer(name, tokens, line["text"], line["ended"])

    def answer(self, dataset, total=None, progress=True):
        """Answers all records of a data set; returns when all answers are on disk.

        Args:
            dataset: a `PyDataset` of raw records, with a known number of batches.
            total: the number of its records; `None` if it is not known.
            progress: whether a progress bar is shown.

        Raises:
            ValueError: a record cannot be answered or is not the one that was answered
                before, or the journal has answers to others. The message names it.
        """
        bar = keras.utils.Progbar(total, unit_name="answer") if progress else None
        groups = self.decoder.answered_groups(self._groups(dataset))
        with contextlib.closing(groups):
            for group in groups:
                self._keep(group)
                if bar:
                    bar.update(len(self.answers), finalize=False)
        if bar and self.answers:
            bar.target = len(self.answers)
            bar.update(len(self.answers), finalize=True)
        self.expect_asked(self._asked)
        self.journal.sort(list(self._asked))

    def expect_asked(self, names):
        """Raises a `ValueError` if the journal answers others than records of these."""
        others = [name for name in self._digests if name not in names]
        if others:
            raise ValueError(
                f"'{self.journal.folder}' holds answers to {len(others)} records that "
                f"the data does not have, such as {others[0]!r}. Give the data that it "
                "was made of, with more records or without, or another `path`."
            )

    def _groups(self, dataset):
        """Yields the groups of prompts that are to be decoded, each after its seed."""
        parts = map(self._checked, record_parts(dataset, self.batch_size))
        if self.decoder.family.bidirectional_prompt:
            prompts = itertools.chain.from_iterable(map(self._prompts, parts))
            groups = grouped(prompts, self.batch_size)
        else:
            groups = itertools.chain.from_iterable(
                grouped(self._prompts(records), self.batch_size)
                for records in parts
                if not self._holds(records["ids"])
            )
        for group, lacking in groups:
            names = [prompt.id for prompt in group]
            if not self._holds(names):
                self.decoder.begin(hashed_seed(self.seed, *map(repr, names)))
                yield group, lacking

    def _holds(self, names):
        return all(name in self.answers for name in names)

    def _checked(self, records):
        """The records as `CheckedRecords`, none of them known by another content."""
        names = expect_ids(records)
        end = [self.decoder.end] * len(names)  # in place of the last answers
        records = checked_records({**records, "response_tokens": end})
        digests = fingerprints.of_records(records)
        for name, digest in zip(names, digests, strict=True):
            if name in self._asked:
                raise ValueError(
                    f"Two records have the id {name!r}. Answers are found by the ids "
                    "of their records; give each its own."
                )
            if self._digests.get(name, digest) != digest:
                raise ValueError(
                    f"Record {name!r} is not the one that '{self.journal.path}' "
                    "answers: its prompt, its images, its system prompt or its earlier "
                    "turns were changed. Give another `path` to answer it anew, or "
                    "take its line out."
                )
            self._asked[name] = digest
        return records

    def _prompts(self, records):
        return self.decoder.prompts(records, records["ids"])

    def _keep(self, group):
        """Writes what is new of a group's answers to disk."""
        lines = []
        for name, tokens, ended in group:
            if name not in self.answers:  # a kill may have left a part of a group
                metadata = {
                    "max_new_tokens": self.decoder.max_new_tokens,
                    "record": self._asked[name],
                }
                text = self.decoder.text_of(tokens[: len(tokens) - ended])
                line = {"answer_id": name, "text": text, "response_tokens": tokens}
                lines.append({**line, "ended": ended, "metadata": metadata})
        self.journal.append(lines)
        for line in lines:
            self._add(line)


def _is_answer(line):
    """Whether a line of the journal has the form of those that `AnswerRun` writes."""
    tokens, metadata = line.get("response_tokens"), line.get("metadata")
    return (
        isinstance(line.get("answer_id"), str)
        and isinstance(line.get("text"), str)
        and isinstance(line.get("ended"), bool)
        and isinstance(tokens, list)
        and bool(tokens)
        and all(type(token) is int and 0 <= token < 2**31 for token in tokens)
        and isinstance(metadata, dict)
        and isinstance(metadata.get("record"), str)
        and "max_new_tokens" in metadata
    )
