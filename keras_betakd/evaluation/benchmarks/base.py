"""What the runner wants of a benchmark, whichever it is."""

import pathlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from keras_betakd.data.images import IMAGE_MARK
from keras_betakd.evaluation.agreement import Outcome
from keras_betakd.evaluation.answer_text import without_end_mark
from keras_betakd.evaluation.llava_protocol import llava_answers


class Benchmark:
    """The base of the six benchmarks.

    A question is whatever the benchmark's loader makes: it has an `id` and an `image`.

    Attributes:
        title: What is asked.
        files: The files that `load` reads, for the command's help.
        official: The key in `scores` of the number that papers report.
        prompt_format: What a prompt holds, in this order.
        max_new_tokens: Tokens of an answer at most, as published.
        note: What must be said with the numbers, or nothing.
    """

    title = ""
    files = ""
    official = "accuracy"
    prompt_format = "picture, question, instruction"
    max_new_tokens = 128
    note = ""

    def load(self, directory: pathlib.Path) -> Sequence:
        """All questions.

        Raises:
            FileNotFoundError, ValueError: As the benchmark's loader.
        """
        raise NotImplementedError

    def prompt(self, question) -> str:
        """What the model is asked, with `IMAGE_MARK`."""
        raise NotImplementedError

    def group(self, question) -> Hashable:
        """Of what there must be some questions for a score to exist."""
        return None

    def unit(self, question) -> Hashable:
        """What only counts as a whole."""
        return question.id

    def first(self, questions: Sequence, limit: int) -> list:
        """The questions of the first `limit` units in each group."""
        units: dict[Hashable, set] = {}
        for question in questions:
            found = units.setdefault(self.group(question), set())
            if len(found) < limit:
                found.add(self.unit(question))
        return [q for q in questions if self.unit(q) in units[self.group(q)]]

    def line(self, question, text: str) -> dict:
        """The line of a LLaVA answer file, as the published generator writes it."""
        return {
            "question_id": self.question_id(question),
            "prompt": self.logged_prompt(question),
            "text": text,
        }

    def question_id(self, question) -> str | int:
        """How the published files name the question."""
        return question.id

    def logged_prompt(self, question) -> str:
        """The prompt as the published generator logs it."""
        return self.prompt(question).removeprefix(f"{IMAGE_MARK}\n")

    def answers(self, questions: Sequence, lines: Sequence[Mapping]) -> dict[str, str]:
        """Answers by question id, out of the lines of any LLaVA answer file."""
        return llava_answers(lines)

    def scores(self, questions: Sequence, answers: Mapping[str, str]) -> dict:
        """The entries of the report: `"scores"` and `"categories"`, dicts by name.

        Raises:
            ValueError: The answers have no score.
        """
        raise NotImplementedError

    def read(self, question, text: str) -> Hashable | None:
        """What an answer says; `None` if nothing can be read."""
        raise NotImplementedError

    def expected(self, question) -> Any:
        """The right answer, as `read` would read it."""
        return question.answer

    def is_right(self, question, answer: Hashable | None) -> bool:
        """Whether an answer that was read is right."""
        return answer == self.expected(question)

    def outcomes(
        self, questions: Sequence, answers: Mapping[str, str]
    ) -> dict[str, Outcome]:
        """What came of each question that has an answer, by its id."""
        texts = {name: without_end_mark(text) for name, text in answers.items()}
        read = {q.id: self.read(q, texts[q.id]) for q in questions if q.id in texts}
        return {
            q.id: Outcome(read[q.id], self.is_right(q, read[q.id]))
            for q in questions
            if q.id in read
        }


def answer_counts(score):
    return {"unparsed": score.unparsed, "missing": score.missing}
