"""`Answer`: what a model answered, and what an epoch's answers are like."""

import dataclasses

_NAN = float("nan")
# Which values are better, for callbacks that monitor them.
DIRECTIONS = {"answers": None, "answer_tokens": None, "answers_ended": "max"}
_FEWEST_ENDED = 0.1


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer of a model to a prompt of the training data.

    Attributes:
        name: the record, by its id if it has one and its place in the data.
        tokens: sequence of token ids, the one that ends it included.
        text: the same as text, without the token that ends it and special ones.
        ended: whether the model ended it; else it was cut at `max_new_tokens`.
    """

    name: str
    tokens: tuple
    text: str
    ended: bool


def report_of(answers):
    """What `History` holds of an epoch's answers, by name.

    Args:
        answers: list of `Answer`.

    Returns:
        Dict of `"answers"`, their number, `"answer_tokens"`, the mean number of their
        tokens, and `"answers_ended"`, the share of those that the student ended; the
        two are NaN where there are none.

    Example:

    >>> report_of([Answer("0", (5, 1), "red", True), Answer("1", (5,) * 4, "", False)])
    {'answers': 2, 'answer_tokens': 3.0, 'answers_ended': 0.5}
    """
    size = len(answers)
    if size == 0:
        return {"answers": 0, "answer_tokens": _NAN, "answers_ended": _NAN}
    return {
        "answers": size,
        "answer_tokens": sum(len(a.tokens) for a in answers) / size,
        "answers_ended": sum(a.ended for a in answers) / size,
    }


def warning_of(answers, epoch):
    """A warning of a student that collapses; `None` for others.

    Args:
        answers: list of `Answer`, of one epoch.
        epoch: its number.
    """
    found = report_of(answers)
    ended = found["answers_ended"]
    if not ended < _FEWEST_ENDED:
        return None
    return (
        f"Of the student's own answers in epoch {epoch + 1}, {ended:.0%} ended "
        f"by themselves, with {found['answer_tokens']:.1f} tokens on average. "
        "It may repeat itself without end. Look at `StudentAnswers.last`; "
        "train on given answers first, give a smaller `on_policy` or learning "
        "rate, or raise `max_new_tokens` if answers are longer than it."
    )
