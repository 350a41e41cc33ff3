"""TextVQA: questions about text in the image (Singh et al., 2019).

It scores the validation set of version 0.5.1 (arXiv 1904.08920), prompted with the
reference OCR tokens as in LLaVA. A question's score is in 0..1, the accuracy in per
cent. There are no official categories.
"""

import collections
import dataclasses
import statistics
from collections.abc import Mapping, Sequence

from keras_betakd.evaluation.benchmarks.base import Benchmark, answer_counts
from keras_betakd.evaluation.benchmarks.textvqa_questions import (
    TextVQAQuestion,
    load_textvqa,
    textvqa_answers,
    textvqa_prompt,
)
from keras_betakd.evaluation.benchmarks.vqa_normalization import normalize_vqa_answer
from keras_betakd.evaluation.intervals import mean_interval
from keras_betakd.evaluation.predictions import answers_of, normalized_answers
from keras_betakd.evaluation.report import entry


@dataclasses.dataclass(frozen=True)
class TextVQAScore:
    """The result of `score_textvqa`.

    Args:
        scores: The score of each answered question by its id, in 0..1.
        unparsed: Answers that are empty after normalization, or thoughts without an
            answer, which count as wrong.
        missing: Questions without an answer. They are left out of the mean, as by the
            published scorer, which only reads the answers.

    Example:

    >>> TextVQAScore(scores={"1": 0.6, "2": 1.0}).accuracy
    80.0
    """

    scores: Mapping[str, float]
    unparsed: int = 0
    missing: int = 0

    @property
    def accuracy(self) -> float:
        """The mean score in per cent: TextVQA's main number."""
        return 100.0 * statistics.fmean(self.scores.values())

    @property
    def n(self) -> int:
        """The number of answered questions."""
        return len(self.scores)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of `accuracy`, in per cent; `None` for one question."""
        ends = mean_interval(list(self.scores.values()))
        return ends and (100.0 * ends[0], 100.0 * ends[1])


def score_textvqa(
    questions: Sequence[TextVQAQuestion], predictions: Mapping[str, str]
) -> TextVQAScore:
    """Scores answers to TextVQA questions against those of ten people.

    With m of the ten answers equal to the prediction, all eleven normalized, the score
    is the mean of min(1, others / 3) over the ten ways to leave one person out, where
    "others" is the number of equal answers among the remaining nine:

        (m min(1, (m - 1) / 3) + (10 - m) min(1, m / 3)) / 10

    so 0, 0.3, 0.6, 0.9, 1 for m = 0, 1, 2, 3 and more. Of several questions with the
    same image and wording, the answers of the last one count for all.

    Args:
        questions: The questions, for example from `load_textvqa`.
        predictions: The answers by question id; see `textvqa_answers`.

    Returns:
        A `TextVQAScore`.

    Raises:
        TypeError: `predictions` is not a mapping, or an answer is not a string.
        ValueError: There is no question or no answer, an id occurs twice, or an
            answer belongs to no question.

    Example:

    >>> people = ["dakota"] * 7 + ["dakota digital"] * 3
    >>> question = TextVQAQuestion("1", "What brand?", "a1", people)
    >>> score_textvqa([question], {"1": "Dakota digital"}).scores["1"]
    0.9
    """
    answers = answers_of(questions, predictions, refuse_unknown=True)
    if not answers:
        raise ValueError(
            "The accuracy is a mean over answers. Received: no answer to any of "
            f"{len(questions)} questions"
        )
    people = {question.key: question.answers for question in questions}
    normalized = normalized_answers(answers, normalize_vqa_answer)
    return TextVQAScore(
        scores={
            question.id: _soft_score(normalized[question.id], people[question.key])
            for question in questions
            if question.id in normalized
        },
        unparsed=sum(not text for text in normalized.values()),
        missing=len(questions) - len(answers),
    )


def _soft_score(prediction: str | None, answers: Sequence[str]) -> float:
    """The score of one normalized prediction."""
    equal = sum(normalize_vqa_answer(answer) == prediction for answer in answers)
    if not equal:
        return 0.0
    others = len(answers) - equal
    credit = equal * min(1.0, (equal - 1) / 3) + others * min(1.0, equal / 3)
    return credit / len(answers)


class TextVQA(Benchmark):
    """TextVQA, scored against the answers of ten people."""

    title = "TextVQA 0.5.1, validation"
    files = "llava_textvqa_val_v051_ocr.jsonl, TextVQA_0.5.1_val.json, train_images/"
    prompt_format = "picture, question, OCR tokens, instruction"

    def load(self, directory):
        return load_textvqa(
            directory / "llava_textvqa_val_v051_ocr.jsonl",
            directory / "TextVQA_0.5.1_val.json",
            directory / "train_images",
        )

    def prompt(self, question):
        return textvqa_prompt(question)

    def question_id(self, question):
        return question.image_id

    def answers(self, questions, lines):
        return textvqa_answers(questions, lines)

    def scores(self, questions, answers):
        score = score_textvqa(questions, answers)
        number = entry(score.accuracy, score.interval, score.n, **answer_counts(score))
        return {"scores": {"accuracy": number}, "categories": {}}

    def read(self, question, text):
        return normalize_vqa_answer(text) or None

    def expected(self, question):
        answers = map(normalize_vqa_answer, question.answers)
        return collections.Counter(answers).most_common(1)[0][0]

    def is_right(self, question, answer):
        """An answer is right if at least two of the ten people gave it."""
        return [normalize_vqa_answer(a) for a in question.answers].count(answer) >= 2
