"""POPE: yes-no questions that measure object hallucination (Li et al., 2023).

It has three sets of questions about COCO images, which differ in how the absent objects
were chosen (arXiv 2305.10355). The number that LLaVA, MobileVLM and Beta-KD report is
the mean of the three F1 scores, in per cent.
"""

import dataclasses
import re
import statistics
from collections.abc import Mapping, Sequence

from keras_betakd.evaluation.benchmarks.base import Benchmark, answer_counts
from keras_betakd.evaluation.benchmarks.pope_questions import (
    POPE_CATEGORIES,
    POPEQuestion,
    load_pope,
    pope_prompt,
)
from keras_betakd.evaluation.intervals import wilson_interval
from keras_betakd.evaluation.llava_protocol import llava_answers
from keras_betakd.evaluation.predictions import answers_of, normalized_answers
from keras_betakd.evaluation.report import entry

_YES_OR_NO = re.compile(r"\b(?:yes|no|not)\b", re.IGNORECASE)


def parse_pope(text: str) -> str:
    """Reads an answer as "no" or "yes", like the published scorer.

    It is "no" if, before the first period and without commas, one of the words
    between spaces is exactly "No", "no" or "not"; everything else is "yes".

    Known pitfalls: "NO", "Nope", "Not at all", "No!", "cannot see" and the empty answer
    are "yes"; "Yes! no" is "no".

    Args:
        text: The answer.

    Returns:
        "yes" or "no".

    Example:

    >>> parse_pope("No, there is none."), parse_pope("NO")
    ('no', 'yes')
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


@dataclasses.dataclass(frozen=True)
class POPECategory:
    """The counts of one category, with "yes" as the positive class, and its scores.

    Args:
        tp: Present objects that the answer says are present.
        fp: Absent objects that the answer says are present: hallucinated.
        tn: Absent objects that the answer does not say are present.
        fn: Present objects that the answer does not say are present.
        silent: Of `fp`, the questions with thoughts but no answer. They count as wrong,
            but not as "yes" in `yes_ratio`.

    Raises:
        ValueError: `tp` is 0. The published scorer then divides by zero.

    Example:

    >>> POPECategory(tp=2, fp=1, tn=3, fn=1).precision
    66.66666666666667
    """

    tp: int
    fp: int
    tn: int
    fn: int
    silent: int = 0

    def __post_init__(self):
        if not self.tp:
            raise ValueError(
                "Precision = TP / (TP + FP), recall = TP / (TP + FN) and their F1 need "
                "at least one answer that is rightly read as yes. Received: "
                f"TP={self.tp}, FP={self.fp}, TN={self.tn}, FN={self.fn}"
            )

    @property
    def n(self) -> int:
        """The number of questions."""
        return self.tp + self.fp + self.tn + self.fn

    @property
    def accuracy(self) -> float:
        """Right answers in per cent."""
        return 100.0 * (self.tp + self.tn) / self.n

    @property
    def precision(self) -> float:
        """Per cent of the answers "yes" that are right."""
        return 100.0 * self.tp / (self.tp + self.fp)

    @property
    def recall(self) -> float:
        """Per cent of the present objects that are answered with "yes"."""
        return 100.0 * self.tp / (self.tp + self.fn)

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall, in per cent."""
        return 200.0 * self.tp / (2 * self.tp + self.fp + self.fn)

    @property
    def yes_ratio(self) -> float:
        """Per cent of the answers that are "yes"."""
        return 100.0 * (self.tp + self.fp - self.silent) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of `f1`, in per cent.

        F1 = 2 J / (1 + J) with the proportion J = TP / (TP + FP + FN), so this
        increasing function maps the ends of J's Wilson interval to those of F1's.
        """
        low, high = wilson_interval(self.tp, self.tp + self.fp + self.fn)
        return 200.0 * low / (1 + low), 200.0 * high / (1 + high)


@dataclasses.dataclass(frozen=True)
class POPEScore:
    """The result of `score_pope`.

    Args:
        per_category: The counts and scores of each category.
        parsed: How `parse_pope` read each answer, "yes" or "no", by question id; `None`
            for thoughts without an answer, which count as wrong.
        unparsed: Answers without any of the words yes, no and not, in either case.
            The published parser counts them as yes, unless they are `None`.
        missing: Always 0: a question without an answer is an error.

    Example:

    >>> counts = POPECategory(tp=3, fp=1, tn=3, fn=1)
    >>> POPEScore({name: counts for name in POPE_CATEGORIES}).mean_f1
    75.0
    """

    per_category: Mapping[str, POPECategory]
    parsed: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    unparsed: int = 0
    missing: int = 0

    @property
    def mean_f1(self) -> float | None:
        """The mean of the three F1 scores in per cent: the number that papers report.

        `None` unless all three categories were scored.
        """
        if len(self.per_category) < len(POPE_CATEGORIES):
            return None
        return statistics.fmean(counts.f1 for counts in self.per_category.values())

    @property
    def n(self) -> int:
        """The number of questions."""
        return sum(counts.n for counts in self.per_category.values())

    @property
    def interval(self) -> tuple[float, float] | None:
        """A 95 % interval of `mean_f1`, in per cent; `None` where that is.

        Its ends are the means of the three intervals' ends. The categories share their
        images and the questions about present objects, so averaging need not reduce the
        error; this width is right if their errors coincide, and never too narrow.
        """
        if self.mean_f1 is None:
            return None
        ends = [counts.interval for counts in self.per_category.values()]
        low, high = map(statistics.fmean, zip(*ends, strict=True))
        return low, high


def score_pope(
    questions: Sequence[POPEQuestion], predictions: Mapping[str, str]
) -> POPEScore:
    """Scores answers to POPE questions, category by category.

    Args:
        questions: The questions, for example from `load_pope`.
        predictions: The answers by question id; those of an answer file come from
            `llava_answers(lines, unique=True)`.

    Returns:
        A `POPEScore`.

    Raises:
        TypeError: `predictions` is not a mapping, or an answer is not a string.
        ValueError: There are no questions, an id occurs twice, a question has no
            answer or an answer no question (the published scorer would pair the
            others wrongly), or the F1 of a category is not defined.

    Example:

    >>> questions = [POPEQuestion(0, "Is there a dog?", "random", "yes")]
    >>> score_pope(questions, {0: "Yes"}).per_category["random"].f1
    100.0
    """
    answers = answers_of(questions, predictions, refuse_unknown=True)
    unanswered = [question.id for question in questions if question.id not in answers]
    if unanswered:
        raise ValueError(
            f"Each question must have an answer. Received: {len(answers)} answers to "
            f"{len(questions)} questions; there is none to {unanswered[:3]}"
        )
    parsed = normalized_answers(answers, parse_pope)
    found = {question.category for question in questions}
    return POPEScore(
        per_category={
            category: _counts(category, questions, parsed)
            for category in POPE_CATEGORIES
            if category in found
        },
        parsed=parsed,
        unparsed=sum(not _YES_OR_NO.search(text or "") for text in answers.values()),
    )


def _counts(category, questions, parsed):
    pairs = [
        (parsed[question.id], question.label != "no")
        for question in questions
        if question.category == category
    ]
    silent = pairs.count((None, False))
    try:
        return POPECategory(
            tp=pairs.count(("yes", True)),
            fp=pairs.count(("yes", False)) + silent,
            tn=pairs.count(("no", False)),
            fn=pairs.count(("no", True)) + pairs.count((None, True)),
            silent=silent,
        )
    except ValueError as error:
        raise ValueError(f"The F1 of {category!r} is not defined. {error}") from error


class POPE(Benchmark):
    """POPE, scored by the mean F1 of its three categories."""

    title = "POPE"
    files = (
        "llava_pope_test.jsonl, coco/coco_pope_{random,popular,adversarial}.json "
        "(of AoiDragon/POPE at commit e3e39262), val2014/"
    )
    official = "mean F1"

    def load(self, directory):
        return load_pope(
            directory / "llava_pope_test.jsonl",
            directory / "coco",
            directory / "val2014",
        )

    def prompt(self, question):
        return pope_prompt(question)

    def group(self, question):
        return question.category

    def question_id(self, question):
        # The published scorer compares ids as integers.
        return int(question.id) if question.id.isdecimal() else question.id

    def answers(self, questions, lines):
        return llava_answers(lines, unique=True)

    def scores(self, questions, answers):
        score = score_pope(questions, answers)
        number = entry(score.mean_f1, score.interval, score.n, **answer_counts(score))
        return {
            "scores": {"mean F1": number},
            "categories": {
                name: _pope_entries(counts)
                for name, counts in score.per_category.items()
            },
        }

    def read(self, question, text):
        return parse_pope(text)

    def expected(self, question):
        return "no" if question.label == "no" else "yes"


def _pope_entries(counts):
    names = ("accuracy", "precision", "recall", "yes_ratio")
    return {
        "F1": entry(counts.f1, counts.interval, counts.n),
        **{name.replace("_", " "): entry(getattr(counts, name)) for name in names},
    }
