"""Compares a student's answers, and the betas, with the errors of its teacher."""

import collections
import dataclasses
import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from keras_betakd.evaluation.intervals import Z_95, Accuracy


class Outcome(NamedTuple):
    """The answer to one question, and whether it is right.

    Attributes:
        answer: The answer as the scorer reads it (a choice, "yes", a normalized text),
            so that equal values are the same answer; `None` if it could not be read.
        right: Whether it counts as right.

    Example:

    >>> Outcome("red", True).right
    True
    """

    answer: Hashable | None
    right: bool


@dataclasses.dataclass(frozen=True)
class Agreement:
    """The result of `score_agreement`, over the questions that both models answered.

    Args:
        n: The number of these questions.
        same: Those with the same answer; an answer that cannot be read equals no other.
        both_right: Those that both answer rightly.
        wrong: Of the questions where the teacher is wrong, those where the student is
            wrong, too. `None` if the teacher is never wrong.
        wrong_elsewhere: Of the questions where the teacher is right, those where the
            student is wrong. `None` if the teacher is never right.
        repeated: Of the questions where the teacher is wrong, those where the student
            gives the same wrong answer. `None` if the teacher is never wrong.
        chance: The value that `repeated` would have, in per cent, if the student's
            answers were independent of the teacher's. `None` if the teacher is never
            wrong.

    Example:

    >>> agreement = score_agreement(
    ...     teacher={"1": Outcome("A", False), "2": Outcome("B", True)},
    ...     student={"1": Outcome("A", False), "2": Outcome("A", False)},
    ...     expected={"1": "B", "2": "B"},
    ... )
    >>> agreement.same.percent, agreement.repeated.percent, agreement.chance
    (50.0, 100.0, 100.0)
    """

    n: int
    same: Accuracy
    both_right: Accuracy
    wrong: Accuracy | None
    wrong_elsewhere: Accuracy | None
    repeated: Accuracy | None
    chance: float | None


def score_agreement(
    teacher: Mapping[str, Outcome],
    student: Mapping[str, Outcome],
    expected: Mapping[str, Hashable],
) -> Agreement:
    """Compares the answers of a student with those of its teacher.

    `chance` is estimated from the student's own answers: with the right answer e and
    the teacher's wrong answer t to a question, it is how often the student answers t
    to the *other* questions whose right answer is e, averaged over the questions that
    the teacher gets wrong. With two possible answers it is thus the student's error
    rate; with four choices, about a third of it; for free text, the rate of that one
    confusion, and 0 where no other question has that right answer.

    Args:
        teacher: The teacher's outcomes by question id.
        student: The student's outcomes. Questions that only one of the two answered
            are ignored.
        expected: The right answer to each question, in the form of `Outcome.answer`.

    Returns:
        An `Agreement`, with 95 % intervals (Wilson).

    Raises:
        ValueError: The two have no question in common, or one of those has no
            expected answer.

    Example: see `Agreement`.
    """
    names = [name for name in student if name in teacher]
    unknown = [name for name in names if name not in expected]
    if not names or unknown:
        raise ValueError(
            "Teacher and student must have answered the same questions, whose right "
            f"answers are known. Received: {len(teacher)} and {len(student)} outcomes, "
            f"{len(names)} in common, {len(unknown)} of them without a right answer"
        )
    same = {
        name: student[name].answer == teacher[name].answer
        and student[name].answer is not None
        for name in names
    }
    wrong = [name for name in names if not teacher[name].right]
    right = [name for name in names if teacher[name].right]
    chances = _chances(names, wrong, teacher, student, expected)
    return Agreement(
        n=len(names),
        same=Accuracy(sum(same.values()), len(names)),
        both_right=Accuracy(sum(student[k].right for k in right), len(names)),
        wrong=_share(not student[name].right for name in wrong),
        wrong_elsewhere=_share(not student[name].right for name in right),
        repeated=_share(same[name] and not student[name].right for name in wrong),
        chance=100.0 * statistics.fmean(chances) if chances else None,
    )


def _share(flags):
    flags = list(flags)
    return Accuracy(sum(flags), len(flags)) if flags else None


def _chances(names, wrong, teacher, student, expected):
    """For each question of `wrong`, how often the student gives the teacher's answer.

    The share is over the other questions with the same right answer.
    """
    given = collections.defaultdict(collections.Counter)
    for name in names:
        given[expected[name]][student[name].answer] += 1
    chances = []
    for name in wrong:
        others = given[expected[name]].copy()
        others[student[name].answer] -= 1
        answer = teacher[name].answer
        count = 0 if answer is None else others[answer]
        chances.append(count / max(others.total(), 1))
    return chances


@dataclasses.dataclass(frozen=True)
class BetaAndErrors:
    """The result of `beta_and_errors`.

    Args:
        auc: The probability that beta is lower at an example that the teacher gets
            wrong than at one it gets right, ties counted by half: 0.5 if beta does not
            separate them, 1 if it does without exception.
        interval: The 95 % interval of `auc`.
        median_wrong: The median beta where the teacher is wrong.
        median_right: The same where it is right.
        n_wrong: Examples that the teacher gets wrong.
        n_right: Examples that it gets right.

    Example: see `beta_and_errors`.
    """

    auc: float
    interval: tuple[float, float]
    median_wrong: float
    median_right: float
    n_wrong: int
    n_right: int


def beta_and_errors(
    betas: Sequence[float], teacher_is_wrong: Sequence[bool]
) -> BetaAndErrors:
    """Measures whether beta is lower where the teacher is wrong.

    The measure is the area under the ROC curve of "low beta" as a test for the
    teacher's errors,

        auc = P(beta_wrong < beta_right) + P(beta_wrong = beta_right) / 2

    with the standard error of Hanley and McNeil (1982). Its interval holds all areas
    that lie within 1.96 of *their own* standard errors of the one found (Newcombe
    2006, method 5), so that it stays meaningful at 0 and 1, as Wilson's does.

    Args:
        betas: The beta of each example, for example that of an `InstanceBeta`.
        teacher_is_wrong: For each example whether the teacher answers wrongly.

    Returns:
        A `BetaAndErrors`.

    Raises:
        ValueError: The two differ in length, a beta is not finite, or the teacher is
            never or always wrong.

    Example:

    >>> found = beta_and_errors([0.1, 0.5, 0.5, 2.0], [True, True, False, False])
    >>> found.auc, found.median_wrong, found.median_right
    (0.875, 0.3, 1.25)
    """
    values = np.asarray(betas, "float64")
    flags = np.asarray(teacher_is_wrong, bool)
    if values.ndim != 1 or values.shape != flags.shape or not np.isfinite(values).all():
        raise ValueError(
            "There must be one finite beta for each example, and one flag. Received: "
            f"betas of shape {values.shape}, flags of shape {flags.shape}, "
            f"{np.isfinite(values).sum()} finite betas"
        )
    wrong, right = values[flags], np.sort(values[~flags])
    if not len(wrong) or not len(right):
        raise ValueError(
            "There must be examples that the teacher gets wrong, and others. Received: "
            f"{len(wrong)} wrong, {len(right)} right"
        )
    at_most, below = (right.searchsorted(wrong, side) for side in ("right", "left"))
    higher = len(right) - (at_most + below) / 2
    auc = float(higher.mean() / len(right))
    return BetaAndErrors(
        auc=auc,
        interval=_auc_interval(auc, len(wrong), len(right)),
        median_wrong=float(np.median(wrong)),
        median_right=float(np.median(right)),
        n_wrong=len(wrong),
        n_right=len(right),
    )


def _auc_interval(auc, m, n):
    def too_far(area):
        return abs(area - auc) > Z_95 * _standard_error(area, m, n)

    return _border(auc, 0.0, too_far), _border(auc, 1.0, too_far)


def _border(inside, outside, too_far):
    """The area where `too_far` begins, by bisection to full precision."""
    if not too_far(outside):
        return outside
    for _ in range(60):
        middle = (inside + outside) / 2
        if too_far(middle):
            outside = middle
        else:
            inside = middle
    return inside


def _standard_error(area, m, n):
    """The standard error of Hanley and McNeil, with m and n averaged in both terms."""
    pairs = (m + n) / 2 - 1
    terms = 1 + pairs * (1 - area) / (2 - area) + pairs * area / (1 + area)
    return math.sqrt(area * (1 - area) * terms / (m * n))
