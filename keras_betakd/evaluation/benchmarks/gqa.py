"""GQA: short answers to questions about real images (Hudson and Manning, 2019).

It scores the balanced test-dev set: it normalizes answers as LLaVA's converter does and
computes the numbers of the official script (arXiv 1902.09506). Accuracies are in per
cent. Validity and plausibility need files that test-dev lacks.
"""

import collections
import dataclasses
import statistics
from collections.abc import Mapping, Sequence

from keras_betakd.evaluation.benchmarks.base import Benchmark, answer_counts
from keras_betakd.evaluation.benchmarks.gqa_questions import (
    GQAQuestion,
    gqa_prompt,
    load_gqa,
)
from keras_betakd.evaluation.intervals import Accuracy, accuracies
from keras_betakd.evaluation.predictions import answers_of, normalized_answers
from keras_betakd.evaluation.report import entry, share, shares


def normalize_gqa_answer(text: str) -> str:
    """Normalizes an answer as LLaVA's converter does before the official script.

    It removes the periods at the end and lowercases the rest. Articles, outer spaces
    and other punctuation stay, and make an answer wrong.

    Example:

    >>> normalize_gqa_answer("Dark blue.")
    'dark blue'
    """
    return text.rstrip(".").lower()


@dataclasses.dataclass(frozen=True)
class GQAScore:
    """The result of `score_gqa`, over the balanced questions.

    Args:
        overall: The accuracy of all of them.
        binary: The accuracy of those to be answered with yes, no or one of two things:
            all but `open`. `None` if there are none.
        open: The accuracy of those of the structure "query"; `None` if there are none.
        distribution: The distance between the counts of the answers and those of the
            right answers; lower is better, 0 is perfect. `None` if no question has a
            group.
        consistency: In per cent; `None` if it was not requested, or no rightly answered
            question entails another.
        per_structural: The accuracy for each structure.
        per_semantic: The accuracy for each semantic type.
        per_steps: The accuracy for each number of reasoning steps.
        per_length: The accuracy for each number of words.
        unparsed: Answers of nothing but spaces and periods, or thoughts without an
            answer. Counted as wrong.
        missing: Questions without an answer; none of them is balanced.

    Example:

    >>> score = GQAScore(overall=Accuracy(3, 4))
    >>> score.accuracy, score.n
    (75.0, 4)
    """

    overall: Accuracy
    binary: Accuracy | None = None
    open: Accuracy | None = None
    distribution: float | None = None
    consistency: float | None = None
    per_structural: Mapping[str, Accuracy] = dataclasses.field(default_factory=dict)
    per_semantic: Mapping[str, Accuracy] = dataclasses.field(default_factory=dict)
    per_steps: Mapping[int, Accuracy] = dataclasses.field(default_factory=dict)
    per_length: Mapping[int, Accuracy] = dataclasses.field(default_factory=dict)
    unparsed: int = 0
    missing: int = 0

    @property
    def accuracy(self) -> float:
        """Per cent of the balanced questions answered rightly: GQA's number."""
        return self.overall.percent

    @property
    def n(self) -> int:
        """Balanced questions."""
        return self.overall.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of `accuracy`, in per cent."""
        return self.overall.interval


def score_gqa(
    questions: Sequence[GQAQuestion],
    predictions: Mapping[str, str],
    consistency: bool = False,
) -> GQAScore:
    """Scores answers to GQA questions by exact match with the right answer.

    The distribution is

        sum_g n_g sum_answers (o - e)^2 / e  /  sum_g n_g  /  100

    over the groups g of n_g questions each, with e the number of questions of the group
    that have an answer as their right one, and o how often it was predicted there.

    The consistency is the mean, over the rightly answered questions that entail
    others, of the fraction of those others that are right, too.

    Args:
        questions: The questions, for example from `load_gqa`.
        predictions: The answers by question id. Answers to other questions are ignored.
        consistency: Whether to compute it; entailed questions must then be among
            `questions` and have answers.

    Returns:
        A `GQAScore`.

    Raises:
        TypeError: `predictions` is not a mapping, or an answer is not a string.
        ValueError: There is no balanced question, an id occurs twice, or a balanced
            (with `consistency`, an entailed) question has no answer.

    Example:

    >>> questions = [GQAQuestion("1", "Is it red?", "yes", structural="verify")]
    >>> score_gqa(questions, {"1": "Yes."}).accuracy
    100.0
    """
    answers = normalized_answers(
        answers_of(questions, predictions), normalize_gqa_answer
    )
    balanced = [question for question in questions if question.balanced]
    _check_answered(balanced, answers)
    right = {q.id: answers[q.id] == q.answer for q in questions if q.id in answers}

    def per(key):
        return accuracies((key(question), right[question.id]) for question in balanced)

    kinds = per(lambda question: question.structural == "query")
    return GQAScore(
        overall=per(lambda _: "all")["all"],
        binary=kinds.get(False),
        open=kinds.get(True),
        distribution=_distribution(balanced, answers),
        consistency=_consistency(balanced, right) if consistency else None,
        per_structural=per(lambda question: question.structural),
        per_semantic=per(lambda question: question.semantic),
        per_steps=per(lambda question: question.steps),
        per_length=per(lambda question: question.words),
        unparsed=sum(not (answers[question.id] or "").strip() for question in balanced),
        missing=len(questions) - len(answers),
    )


def _check_answered(balanced, answers):
    unanswered = [question.id for question in balanced if question.id not in answers]
    if not balanced or unanswered:
        raise ValueError(
            "There must be a balanced question, and an answer to each. Received: "
            f"{len(balanced)} balanced questions, {len(unanswered)} of them without an "
            f"answer, for example {unanswered[:3]}"
        )


def _distribution(balanced, answers):
    gold = collections.defaultdict(collections.Counter)
    predicted = collections.defaultdict(collections.Counter)
    for question in balanced:
        if question.group is not None:
            gold[question.group][question.answer] += 1
            predicted[question.group][answers[question.id]] += 1
    if not gold:
        return None
    sizes = [counts.total() for counts in gold.values()]
    distances = [
        sum((predicted[group][text] - e) ** 2 / e for text, e in counts.items())
        for group, counts in gold.items()
    ]
    return statistics.fmean(distances, weights=sizes) / 100


def _consistency(balanced, right):
    fractions = []
    for question in balanced:
        others = [name for name in question.entailed if name != question.id]
        if not others or not right[question.id]:
            continue
        unknown = [name for name in others if name not in right]
        if unknown:
            raise ValueError(
                "The consistency needs the questions that others entail, with their "
                f"answers. Received: question {question.id!r} entails {unknown[0]!r}, "
                "which is not asked or not answered"
            )
        fractions.append(statistics.fmean(right[name] for name in others))
    return 100.0 * statistics.fmean(fractions) if fractions else None


class GQA(Benchmark):
    """GQA, scored by exact match."""

    title = "GQA, test-dev balanced"
    files = "llava_gqa_testdev_balanced.jsonl, testdev_balanced_questions.json, images/"

    def load(self, directory):
        return load_gqa(
            directory / "llava_gqa_testdev_balanced.jsonl",
            directory / "testdev_balanced_questions.json",
            directory / "images",
        )

    def prompt(self, question):
        return gqa_prompt(question)

    def scores(self, questions, answers):
        score = score_gqa(questions, answers)
        return {
            "scores": {
                "accuracy": share(score.overall) | answer_counts(score),
                "binary": share(score.binary),
                "open": share(score.open),
                "distribution (lower is better)": entry(score.distribution),
            },
            "categories": {
                "structure": shares(score.per_structural),
                "semantics": shares(score.per_semantic),
                "steps of reasoning": shares(score.per_steps),
                "words": shares(score.per_length),
            },
        }

    def read(self, question, text):
        text = normalize_gqa_answer(text)
        return text if text.strip() else None
