"""The interface between the evaluation command and a benchmark."""

import pathlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from keras_betakd.data.images import IMAGE_MARK
from keras_betakd.evaluation.agreement import Outcome
from keras_betakd.evaluation.answer_text import final_answer, without_end_mark
from keras_betakd.evaluation.llava_protocol import llava_answers


class Benchmark:
    """The base class of the benchmarks: questions, prompts, answer lines and scores.

    The questions are the objects that the benchmark's loader returns; each has an `id`
    and an `image`. A subclass defines `load`, `prompt`, `scores` and `read`, and
    overrides the others where its published protocol differs from LLaVA's usual one.

    Attributes:
        title: The name of the benchmark and of its split, for the report.
        files: The files that `load` reads, for the command's help.
        official: The key in `scores` of the number that papers report.
        prompt_format: The parts of a prompt, in their order.
        max_new_tokens: The largest number of tokens of an answer, as published.
        note: A remark that is printed with the numbers, or an empty string.
        forms: The names of the forms in which it can be asked, if there are several.
        mobilevlm_crops: Whether the published run of MobileVLM cropped its images,
            where it pads those of the other benchmarks.
    """

    title = ""
    files = ""
    official = "accuracy"
    prompt_format = "picture, question, instruction"
    max_new_tokens = 128
    note = ""
    forms: tuple[str, ...] = ()
    mobilevlm_crops = False

    def in_form(self, form: str) -> "Benchmark":
        """The benchmark, asked in one of its `forms`."""
        raise NotImplementedError

    def prompt_format_of(self, questions: Sequence) -> str:
        """The parts of the prompts of these questions, for the report."""
        return self.prompt_format

    def load(self, directory: pathlib.Path) -> Sequence:
        """Reads all questions from the folder with the published files.

        Raises:
            FileNotFoundError, ValueError: As the benchmark's loader.
        """
        raise NotImplementedError

    def prompt(self, question) -> str:
        """The prompt, with `IMAGE_MARK` where the question has an image."""
        raise NotImplementedError

    def group(self, question) -> Hashable:
        """The question's group; a score only exists if each group has questions."""
        return None

    def unit(self, question) -> Hashable:
        """The question's unit; the questions of a unit are only scored together."""
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
        """The question's id in the published files."""
        return question.id

    def logged_prompt(self, question) -> str:
        """The prompt as the published generator logs it."""
        return self.prompt(question).removeprefix(f"{IMAGE_MARK}\n")

    def answers(self, questions: Sequence, lines: Sequence[Mapping]) -> dict[str, str]:
        """The answers in the lines of any LLaVA answer file, by question id."""
        return llava_answers(lines)

    def scores(self, questions: Sequence, answers: Mapping[str, str]) -> dict:
        """The entries of the report: `"scores"` and `"categories"`, dicts by name.

        Raises:
            ValueError: The answers have no score.
        """
        raise NotImplementedError

    def read(self, question, text: str) -> Hashable | None:
        """The answer in a text, in the form of `expected`; `None` if it has none."""
        raise NotImplementedError

    def expected(self, question) -> Any:
        """The right answer, in the form in which `read` returns answers."""
        return question.answer

    def is_right(self, question, answer: Hashable | None) -> bool:
        """Whether an answer that `read` returned is right."""
        return answer == self.expected(question)

    def outcomes(
        self, questions: Sequence, answers: Mapping[str, str]
    ) -> dict[str, Outcome]:
        """The `Outcome` of each question that has an answer, by its id."""
        read = {
            q.id: self._read_final(q, answers[q.id])
            for q in questions
            if q.id in answers
        }
        return {
            q.id: Outcome(read[q.id], self.is_right(q, read[q.id]))
            for q in questions
            if q.id in read
        }

    def _read_final(self, question, text):
        text = final_answer(without_end_mark(text))
        return None if text is None else self.read(question, text)


def answer_counts(score) -> dict[str, int]:
    """A score's counts of unparsed and missing answers, for its entry in the report."""
    return {"unparsed": score.unparsed, "missing": score.missing}
