"""ScienceQA accuracy, over all questions and over those with a picture."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

from keras_betakd.data.scienceqa_records import ScienceQARecord
from keras_betakd.evaluation.choices import parse_choice
from keras_betakd.evaluation.cleaning import without_end_mark
from keras_betakd.evaluation.intervals import Accuracy


@dataclasses.dataclass(frozen=True)
class ScienceQAScore:
    """What `score_scienceqa` found.

    Args:
        correct: Questions answered rightly.
        total: All questions asked, missing and unparsed answers included.
        image_correct: The same of the questions that have a picture ("IMG").
        image_total: Questions that have a picture.
        unparsed: Answers that name no choice, or no single one. Counted as wrong.
        missing: Questions without a prediction. Counted as wrong.
        image_missing: Those of them that have a picture.
        choices: For each id, the index of the choice that was read, or `None`.
        prompt_format: The order of the prompt's parts, fixed in this library:
            context, question, multiple choices; answer.

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
        """All questions asked."""
        return self.total

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of `accuracy`, in per cent (`wilson_interval`)."""
        return Accuracy(self.correct, self.total).interval

    @property
    def image_interval(self) -> tuple[float, float] | None:
        """The same for `image_accuracy`; `None` where that is."""
        if not self.image_total:
            return None
        return Accuracy(self.image_correct, self.image_total).interval

    @property
    def image_accuracy(self) -> float | None:
        """Per cent of the questions with a picture; `None` if there is none."""
        return _percent(self.image_correct, self.image_total)

    @property
    def llava_image_accuracy(self) -> float | None:
        """IMG accuracy as LLaVA's scorer counts it: missing answers left out.

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
        records: The questions asked, for example from `load_scienceqa`.
        predictions: The answers by record id, as `generate_answers` returns them.
            Answers to questions that are not in `records` are left aside.
        parser: `parse_choice`, or `parse_letter_strict` for published numbers, or
            any function of a text and the choices that returns an index or `None`.

    Returns:
        A `ScienceQAScore`.

    Raises:
        TypeError: `predictions` is not a mapping: answers go by id, not by place.
        ValueError: There are no records, or two with the same id.

    Example:

    >>> records = [ScienceQARecord("4", "Which is a mammal?", ("cat", "trout"), 0)]
    >>> score_scienceqa(records, {"4": "A cat is one."}).accuracy
    100.0
    """
    if not isinstance(predictions, Mapping):
        raise TypeError(
            "`predictions` must map record ids to answers. "
            f"Received: {type(predictions).__name__}"
        )
    records = list(records)
    ids = {record.id for record in records}
    if not records or len(ids) < len(records):
        raise ValueError(
            "`records` must hold at least one record, and each id once. "
            f"Received: {len(records)} records with {len(ids)} different ids"
        )
    answered = [r for r in records if r.id in predictions]
    texts = {r.id: without_end_mark(predictions[r.id]) for r in answered}
    choices = {r.id: parser(texts[r.id], r.choices) for r in answered}
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
