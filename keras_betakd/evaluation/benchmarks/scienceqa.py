"""ScienceQA: accuracy over all questions, over those with an image, and by category.

Source: Lu et al. 2022 (ScienceQA, arXiv 2209.09513).
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

from keras_betakd.data.scienceqa import (
    FORMS,
    LETTER_PROMPT_SUFFIX,
    scienceqa_prompt,
)
from keras_betakd.data.scienceqa_llava import load_scienceqa_llava
from keras_betakd.data.scienceqa_records import ScienceQARecord, load_scienceqa
from keras_betakd.evaluation.answer_text import without_end_mark
from keras_betakd.evaluation.benchmarks.base import Benchmark
from keras_betakd.evaluation.choice_parsing import parse_choice, parse_letter_strict
from keras_betakd.evaluation.intervals import Accuracy
from keras_betakd.evaluation.llava_protocol import naming_file
from keras_betakd.evaluation.predictions import texts_by_id
from keras_betakd.evaluation.report import entry, shares

_PARSERS = {"published": parse_letter_strict, "robust": parse_choice}

_IN_CATEGORY: dict[str, Callable[[ScienceQARecord], bool]] = {
    "NAT": lambda record: record.subject == "natural science",
    "SOC": lambda record: record.subject == "social science",
    "LAN": lambda record: record.subject == "language science",
    "TXT": lambda record: bool(record.hint),
    "IMG": lambda record: record.image is not None,
    "NO": lambda record: not record.hint and record.image is None,
    "G1-6": lambda record: record.grade in {f"grade{k}" for k in range(1, 7)},
    "G7-12": lambda record: record.grade in {f"grade{k}" for k in range(7, 13)},
    "Avg": lambda record: True,
}


@dataclasses.dataclass(frozen=True)
class ScienceQAScore:
    """The result of `score_scienceqa`.

    Args:
        correct: Questions answered rightly.
        total: All questions, missing and unparsed answers included.
        image_correct: Questions with an image ("IMG") answered rightly.
        image_total: Questions with an image.
        unparsed: Answers that name no choice, or no single one. Counted as wrong.
        missing: Questions without a prediction. Counted as wrong.
        image_missing: Questions with an image without a prediction.
        choices: For each id, the index of the choice that was read, or `None`.
        prompt_format: The order of the prompt's parts: context, question, multiple
            choices; answer.

    Example:

    >>> score = ScienceQAScore(correct=3, total=4, image_correct=1, image_total=2)
    >>> score.accuracy, score.image_accuracy
    (75.0, 50.0)
    """

    correct: int
    total: int
    image_correct: int
    image_total: int
    unparsed: int = 0
    missing: int = 0
    image_missing: int = 0
    choices: Mapping[str, int | None] = dataclasses.field(default_factory=dict)
    prompt_format: str = "CQM-A"

    @property
    def accuracy(self) -> float:
        """Per cent of all questions answered rightly."""
        return 100.0 * self.correct / self.total

    @property
    def n(self) -> int:
        """The number of questions."""
        return self.total

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of `accuracy`, in per cent (`wilson_interval`)."""
        return Accuracy(self.correct, self.total).interval

    @property
    def image_interval(self) -> tuple[float, float] | None:
        """The 95 % interval of `image_accuracy`, in per cent; `None` where that is."""
        if not self.image_total:
            return None
        return Accuracy(self.image_correct, self.image_total).interval

    @property
    def image_accuracy(self) -> float | None:
        """Per cent of the questions with an image; `None` if there is none."""
        return _percent(self.image_correct, self.image_total)

    @property
    def llava_image_accuracy(self) -> float | None:
        """IMG accuracy as LLaVA's scorer counts it: over the answered questions.

        Equal to `image_accuracy` when every question has a prediction.
        """
        return _percent(self.image_correct, self.image_total - self.image_missing)


def _percent(part, whole):
    return 100.0 * part / whole if whole else None


def score_scienceqa(
    records: Iterable[ScienceQARecord],
    predictions: Mapping[str, str],
    parser: Callable[[str, Sequence[str]], int | None] = parse_choice,
) -> ScienceQAScore:
    """Scores answers to ScienceQA questions.

    Args:
        records: The questions, for example from `load_scienceqa`.
        predictions: The answers by record id, as `generate_answers` returns them.
            Answers to questions that are not in `records` are ignored.
        parser: `parse_choice`, which reads what follows a model's thoughts, or
            `parse_letter_strict`, which reads all of an answer, for published numbers,
            or any function of a text and the choices that returns an index or `None`.

    Returns:
        A `ScienceQAScore`.

    Raises:
        TypeError: `predictions` is not a mapping, or an answer is not a string.
        ValueError: There are no records, or an id occurs twice.

    Example:

    >>> records = [ScienceQARecord("4", "Which is a mammal?", ("cat", "trout"), 0)]
    >>> score_scienceqa(records, {"4": "A cat is one."}).accuracy
    100.0
    """
    texts = texts_by_id(predictions)
    records = list(records)
    ids = {record.id for record in records}
    if not records or len(ids) < len(records):
        raise ValueError(
            "`records` must hold at least one record, and each id once. "
            f"Received: {len(records)} records with {len(ids)} different ids"
        )
    answered = [r for r in records if r.id in texts]
    choices = {r.id: parser(without_end_mark(texts[r.id]), r.choices) for r in answered}
    right = [r for r in answered if choices[r.id] == r.answer]
    return ScienceQAScore(
        correct=len(right),
        total=len(records),
        image_correct=_count_images(right),
        image_total=_count_images(records),
        unparsed=sum(choice is None for choice in choices.values()),
        missing=len(records) - len(answered),
        image_missing=_count_images(records) - _count_images(answered),
        choices=choices,
    )


def _count_images(records):
    return sum(record.image is not None for record in records)


def scienceqa_categories(
    records: Iterable[ScienceQARecord], score: ScienceQAScore
) -> Mapping[str, Accuracy | None]:
    """The accuracy in the official categories, in the order of the official table.

    TXT are the questions with a hint and IMG those with an image, so that a question
    with both is in both; NO are those with neither. Questions without a readable
    answer count as wrong. (arXiv 2209.09513)

    Args:
        records: The questions.
        score: The result of `score_scienceqa` for them, with
            `parser=parse_letter_strict` for published numbers.

    Returns:
        An `Accuracy` for each of NAT, SOC, LAN, TXT, IMG, NO, G1-6, G7-12 and Avg;
        `None` for an empty category, for which the official script prints -1.

    Raises:
        ValueError: The score is of other questions.

    Example:

    >>> from keras_betakd.evaluation import score_scienceqa
    >>> record = ScienceQARecord(
    ...     "4", "A mammal?", ("cat", "trout"), 0, subject="natural science"
    ... )
    >>> table = scienceqa_categories([record], score_scienceqa([record], {"4": "A"}))
    >>> table["NAT"].percent, table["IMG"]
    (100.0, None)
    """
    records = list(records)
    right = {r.id: score.choices.get(r.id) == r.answer for r in records}
    if len(records) != score.total or sum(right.values()) != score.correct:
        raise ValueError(
            "`records` must be those that were scored. Received: "
            f"{len(records)} records, {sum(right.values())} answered rightly; a score "
            f"of {score.total}, {score.correct} rightly"
        )
    flags = {
        name: [right[record.id] for record in records if belongs(record)]
        for name, belongs in _IN_CATEGORY.items()
    }
    return {name: Accuracy(sum(f), len(f)) if f else None for name, f in flags.items()}


class ScienceQA(Benchmark):
    """ScienceQA, with answers read by LLaVA's scorer and as a person would.

    Args:
        form: "llava-1.5" or "llava-1.0"; `None` for the text of the question file,
            where the folder has one, else "llava-1.5" (`scienceqa_prompt`).
    """

    title = "ScienceQA, test"
    files = (
        "problems.json, pid_splits.json, images/test/<id>/image.png; optional "
        "llava_test_CQM-A.json, whose text is then asked"
    )
    official = "IMG accuracy, published scorer"
    max_new_tokens = 1024
    forms = FORMS
    mobilevlm_crops = True

    def __init__(self, form=None):
        self.form = form

    def in_form(self, form):
        return ScienceQA(form)

    def load(self, directory):
        path = directory / "llava_test_CQM-A.json"
        if path.exists():
            with naming_file(path):
                return load_scienceqa_llava(path, directory)
        # Its errors name the record, or the other file.
        with naming_file(directory / "problems.json"):
            return load_scienceqa(directory, "test")

    def prompt_format_of(self, questions):
        parts = "picture, context, question, choices, instruction"
        if self.form is None and any(question.prompt for question in questions):
            return f"{parts}, by the text of the question file"
        return f"{parts}, in the form {self.form or FORMS[0]}"

    def prompt(self, question):
        return scienceqa_prompt(question, LETTER_PROMPT_SUFFIX, self.form)

    def logged_prompt(self, question):
        # With the mark, by which the published scorer recognizes questions with images.
        return self.prompt(question)

    def scores(self, questions, answers):
        scores, categories = {}, {}
        for name, parser in _PARSERS.items():
            score = score_scienceqa(questions, answers, parser=parser)
            with_image = [q.id for q in questions if q.image is not None]
            scores[f"IMG accuracy, {name} scorer"] = entry(
                score.image_accuracy,
                score.image_interval,
                score.image_total,
                unparsed=sum(score.choices.get(k, k) is None for k in with_image),
                missing=score.image_missing,
            )
            scores[f"accuracy, {name} scorer"] = entry(
                score.accuracy,
                score.interval,
                score.n,
                unparsed=score.unparsed,
                missing=score.missing,
            )
            table = scienceqa_categories(questions, score)
            categories[f"official table, {name} scorer"] = shares(table)
        return {"scores": scores, "categories": categories}

    def read(self, question, text):
        return parse_choice(text, question.choices)
