"""MME: pairs of yes-no questions about an image, in fourteen tasks (Fu et al., 2023).

The number that LLaVA, MobileVLM and Beta-KD report, "MME-P", is the sum of the ten
perception tasks' scores (arXiv 2306.13394): points, 0 to 2000, not an accuracy.
"""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence

from keras_betakd.evaluation.benchmarks.base import Benchmark
from keras_betakd.evaluation.benchmarks.mme_questions import (
    MME_COGNITION,
    MME_PERCEPTION,
    MMEQuestion,
    load_mme,
    mme_answers,
    mme_prompt,
)
from keras_betakd.evaluation.intervals import Z_95, standard_error
from keras_betakd.evaluation.predictions import answers_of
from keras_betakd.evaluation.report import entry

_MOST_POINTS = 200.0


def parse_mme(text: str) -> str:
    """Reads an answer as "yes", "no" or "other", like the published scorer.

    Only the first four characters count, in lower case: "yes" if they contain it, else
    "no" if they contain that, else "other".

    Known pitfalls: "not sure", "know...", "none" and "nope" are "no"; "ayes" is "yes";
    "I say no" is "other". Tabs and line breaks, which break the published scorer's
    files, count as spaces.

    Args:
        text: The answer.

    Returns:
        "yes", "no" or "other".

    Example:

    >>> parse_mme("Yes, it is."), parse_mme("not sure"), parse_mme("I say no")
    ('yes', 'no', 'other')
    """
    head = text.lower()[:4]
    return next((word for word in ("yes", "no") if word in head), "other")


@dataclasses.dataclass(frozen=True)
class MMETask:
    """The counts of right answers in one task, and its scores.

    Args:
        right: For each image, how many of its two questions were answered rightly.

    Raises:
        ValueError: There is no image, or a count other than 0, 1 and 2.

    Example:

    >>> task = MMETask(right=(2, 1))
    >>> task.accuracy, task.accuracy_plus, task.score
    (75.0, 50.0, 125.0)
    """

    right: tuple[int, ...]

    def __post_init__(self):
        if not self.right or not set(self.right) <= {0, 1, 2}:
            raise ValueError(
                "`right` must hold 0, 1 or 2 for each image, and at least one "
                f"image. Received: right={self.right}"
            )

    @property
    def n(self) -> int:
        """The number of questions: two for each image."""
        return 2 * len(self.right)

    @property
    def accuracy(self) -> float:
        """Per cent of the questions answered rightly ("acc")."""
        return 100.0 * sum(self.right) / self.n

    @property
    def accuracy_plus(self) -> float:
        """Per cent of the images with both questions answered rightly ("acc+")."""
        return 100.0 * self.right.count(2) / len(self.right)

    @property
    def score(self) -> float:
        """The sum acc + acc+, 0 to 200. Answering "yes" to everything scores 50."""
        return self.accuracy + self.accuracy_plus

    @property
    def standard_error(self) -> float | None:
        """The standard error of `score`, a mean over images; `None` for one image."""
        return standard_error(
            [50.0 * count + 100.0 * (count == 2) for count in self.right]
        )


@dataclasses.dataclass(frozen=True)
class MMEScore:
    """The result of `score_mme`.

    Args:
        per_task: The counts and scores of each task.
        parsed: How `parse_mme` read each answer, by question id.
        unparsed: Answers read as "other". Counted as wrong.
        missing: Questions without an answer, always both of an image. They are left
            out, as by the published scorer, which only reads the answers.

    Example:

    >>> score = MMEScore({name: MMETask((2, 1)) for name in MME_PERCEPTION})
    >>> score.perception, score.cognition
    (1250.0, None)
    """

    per_task: Mapping[str, MMETask]
    parsed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unparsed: int = 0
    missing: int = 0

    @property
    def perception(self) -> float | None:
        """The sum of the ten perception tasks, 0 to 2000: the number "MME-P".

        `None` unless all ten were scored.
        """
        return self._sum(MME_PERCEPTION)

    @property
    def cognition(self) -> float | None:
        """The sum of the four cognition tasks, 0 to 800.

        `None` unless all four were scored.
        """
        return self._sum(MME_COGNITION)

    @property
    def n(self) -> int:
        """The number of answered questions."""
        return sum(task.n for task in self.per_task.values())

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of `perception`, in points, by the normal approximation.

        Images are drawn independently, the two questions about one are not: so the
        standard error of a task is over its images, and the squares of the tasks add
        up. `None` where `perception` is, or if a task has a single image.
        """
        return self._interval(MME_PERCEPTION)

    @property
    def cognition_interval(self) -> tuple[float, float] | None:
        """The same for `cognition`."""
        return self._interval(MME_COGNITION)

    def _sum(self, tasks):
        if not set(tasks) <= set(self.per_task):
            return None
        return math.fsum(self.per_task[task].score for task in tasks)

    def _interval(self, tasks):
        total = self._sum(tasks)
        errors = [self.per_task[t].standard_error for t in tasks if t in self.per_task]
        if total is None or None in errors:
            return None
        half, most = Z_95 * math.hypot(*errors), _MOST_POINTS * len(tasks)
        return max(total - half, 0.0), min(total + half, most)


def score_mme(
    questions: Sequence[MMEQuestion], predictions: Mapping[str, str]
) -> MMEScore:
    """Scores answers to MME questions, task by task.

    A task's score is acc + acc+: per cent of the questions answered rightly plus per
    cent of the images with both answered rightly.

    Args:
        questions: The questions, for example from `load_mme`.
        predictions: The answers by question id; see `mme_answers`.

    Returns:
        An `MMEScore`.

    Raises:
        TypeError: `predictions` is not a mapping, or an answer is not a string.
        ValueError: There are no questions, an id occurs twice, an answer belongs to
            no question, an image has not two questions or only one answer, or a task
            has no answer at all.

    Example:

    >>> questions = [
    ...     MMEQuestion("OCR/1#1", "Is it a 7?", "OCR", "1", "yes"),
    ...     MMEQuestion("OCR/1#2", "Is it an 8?", "OCR", "1", "no"),
    ... ]
    >>> answers = {"OCR/1#1": "Yes", "OCR/1#2": "Yes"}
    >>> score_mme(questions, answers).per_task["OCR"].score
    50.0
    """
    answers = answers_of(questions, predictions, refuse_unknown=True)
    parsed = {name: parse_mme(text or "") for name, text in answers.items()}
    pairs: dict[tuple[str, str], list[MMEQuestion]] = {}
    for question in questions:
        pairs.setdefault((question.task, question.file), []).append(question)
    rights: dict[str, list[int]] = {question.task: [] for question in questions}
    for (task, file), pair in pairs.items():
        _check_pair(f"{task}/{file}", pair, parsed)
        if pair[0].id in parsed:
            rights[task].append(sum(parsed[q.id] == q.answer for q in pair))
    unanswered = [task for task, right in rights.items() if not right]
    if unanswered:
        raise ValueError(
            "Each task must have answers; leave the questions of a task that was not "
            f"asked out. Received: no answer in {unanswered}"
        )
    return MMEScore(
        per_task={task: MMETask(tuple(right)) for task, right in rights.items()},
        parsed=parsed,
        unparsed=sum(word == "other" for word in parsed.values()),
        missing=len(questions) - len(answers),
    )


def _check_pair(name, pair, parsed):
    """Raises for a single answer: it shifts later pairs in the published scorer."""
    answered = [question.id for question in pair if question.id in parsed]
    if len(pair) != 2 or len(answered) == 1:
        raise ValueError(
            "An image must have two questions, and an answer to both or to none. "
            f"Received: {len(pair)} questions about {name!r}, of which answered: "
            f"{answered}"
        )


class MME(Benchmark):
    """MME, scored by the points of its perception and cognition tasks."""

    title = "MME"
    files = "MME_Benchmark_release_version/<task>/ for each of the 14 tasks"
    official = "perception (of 2000)"

    def load(self, directory):
        return load_mme(directory / "MME_Benchmark_release_version")

    def prompt(self, question):
        return mme_prompt(question)

    def group(self, question):
        return question.task

    def unit(self, question):
        return question.task, question.file

    def question_id(self, question):
        return f"{question.task}/{os.path.basename(question.image)}"

    def answers(self, questions, lines):
        return mme_answers(questions, lines)

    def scores(self, questions, answers):
        score = score_mme(questions, answers)

        def area(tasks, value, interval):
            read = [score.parsed.get(q.id) for q in questions if q.task in tasks]
            counts = {"unparsed": read.count("other"), "missing": read.count(None)}
            return entry(value, interval, len(read) - counts["missing"], **counts)

        return {
            "scores": {
                "perception (of 2000)": area(
                    MME_PERCEPTION, score.perception, score.interval
                ),
                "cognition (of 800)": area(
                    MME_COGNITION, score.cognition, score.cognition_interval
                ),
            },
            "categories": {
                "task (of 200)": {
                    name: entry(task.score, n=task.n)
                    for name, task in score.per_task.items()
                }
            },
        }

    def read(self, question, text):
        answer = parse_mme(text)
        return None if answer == "other" else answer
