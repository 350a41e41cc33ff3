"""ScienceQA's nine numbers: by subject, context and grade (Lu et al., 2022)."""

from collections.abc import Callable, Iterable, Mapping

from keras_betakd.data.scienceqa_records import ScienceQARecord
from keras_betakd.evaluation.intervals import Accuracy
from keras_betakd.evaluation.scienceqa import ScienceQAScore

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


def scienceqa_categories(
    records: Iterable[ScienceQARecord], score: ScienceQAScore
) -> Mapping[str, Accuracy | None]:
    """The accuracy in the official categories, in the order of the official table.

    TXT are the questions with a hint and IMG those with a picture, so that a question
    with both is in both; NO are those with neither. Questions without a readable
    answer are wrong. (arXiv 2209.09513)

    Args:
        records: The questions asked.
        score: What `score_scienceqa` found for them, best with
            `parser=parse_letter_strict` for published numbers.

    Returns:
        An `Accuracy` for each of NAT, SOC, LAN, TXT, IMG, NO, G1-6, G7-12 and Avg;
        `None` for an empty category, for which the official script prints -1.

    Raises:
        ValueError: The score is one of other questions.

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
