"""Student and teacher: common answers, repeated errors, and beta where they are."""

import itertools
import math

import numpy as np
import pytest

from keras_betakd.evaluation.agreement import (
    Outcome,
    beta_and_errors,
    score_agreement,
)


def outcomes(answers, expected):
    return {
        name: Outcome(answer, answer == expected[name])
        for name, answer in answers.items()
    }


def agreement(teacher, student, expected):
    teacher, student = (outcomes(a, expected) for a in (teacher, student))
    return score_agreement(teacher, student, expected)


def named(texts):
    return dict(enumerate(texts))


def test_by_hand():
    # Right: 0 1 both, 2 the teacher, 3 the student; wrong: 4 alike, 5 apart, 6 unread.
    expected = named("AABBAAA")
    found = agreement(named("AABABBN"), named("AACBBCN"), expected)
    assert (found.n, found.same.correct, found.both_right.correct) == (7, 4, 2)
    assert (found.wrong.correct, found.wrong.n) == (3, 4)
    assert (found.wrong_elsewhere.correct, found.wrong_elsewhere.n) == (1, 3)
    assert (found.repeated.correct, found.repeated.n) == (2, 4)
    # An answer that cannot be read equals nothing, not even itself.
    unread = dict(teacher=named("AABABB"), student=named("AACBBC"))
    unread = {role: {**answers, 6: None} for role, answers in unread.items()}
    found = agreement(**unread, expected=expected)
    assert (found.same.correct, found.repeated.correct, found.wrong.correct) == (
        3,
        1,
        3,
    )


def test_chance_by_hand():
    # The teacher errs at 0 ("B" for "A") and 4 ("A" for "B"). The student's answers to
    # the other questions with the right answer "A" are B, A, A: a third.
    expected = named("AAAABB")
    found = agreement(named("BAAAAB"), named("BBAABB"), expected)
    assert found.chance == pytest.approx(100 * (1 / 3 + 0) / 2)
    # Nothing else has this right answer: nothing says that the error is common.
    alone = agreement({0: "x"}, {0: "x"}, {0: "y"})
    assert (alone.repeated.percent, alone.chance) == (100.0, 0.0)


@pytest.mark.parametrize("choices", ["AB", "ABCD"])
def test_a_student_that_knows_nothing_of_its_teacher(choices):
    """It repeats the teacher's errors at the rate of chance, whatever its accuracy."""
    rng = np.random.default_rng(0)
    size = 40_000

    def answers(expected, accuracy):
        guesses = rng.choice(list(choices), size)
        return np.where(rng.random(size) < accuracy, expected, guesses)

    expected = rng.choice(list(choices), size)
    found = agreement(
        *(dict(enumerate(answers(expected, a).tolist())) for a in (0.5, 0.7)),
        dict(enumerate(expected.tolist())),
    )
    assert found.chance == pytest.approx(100 * 0.3 / len(choices), abs=0.5)
    low, high = found.repeated.interval
    assert low < found.chance < high
    low, high = found.wrong.interval
    assert low < found.wrong_elsewhere.percent < high


def test_teachers_that_are_never_or_always_wrong():
    expected = named("AB")
    found = agreement(named("AB"), named("AA"), expected)
    assert (found.wrong, found.repeated, found.chance) == (None, None, None)
    found = agreement(named("BA"), named("BB"), expected)
    assert found.wrong_elsewhere is None
    assert found.repeated.percent == 50.0


def test_questions_of_one_of_the_two_are_left_aside():
    expected = {"1": "A", "2": "B", "3": "A"}
    found = agreement({"1": "A", "2": "B"}, {"2": "B", "3": "B"}, expected)
    assert (found.n, found.same.percent) == (1, 100.0)
    with pytest.raises(ValueError, match="0 in common"):
        agreement({"1": "A"}, {"2": "B"}, expected)
    right = {"1": Outcome("A", True)}
    with pytest.raises(ValueError, match="1 of them without a right answer"):
        score_agreement(right, right, {})


@pytest.mark.parametrize("ties", [2, 1000])
def test_auc_counts_the_pairs(ties):
    rng = np.random.default_rng(1)
    betas, wrong = rng.integers(0, ties, 60) / ties, rng.random(60) < 0.4
    found = beta_and_errors(betas, wrong)
    pairs = list(itertools.product(betas[wrong], betas[~wrong]))
    expected = sum((a < b) + (a == b) / 2 for a, b in pairs) / len(pairs)
    assert found.auc == pytest.approx(expected)
    assert found.median_wrong == np.median(betas[wrong])
    assert (found.n_wrong, found.n_right) == (wrong.sum(), (~wrong).sum())


def test_interval_of_the_auc_solves_its_equation():
    """Its ends are the areas that lie 1.96 of their own standard errors away."""
    rng = np.random.default_rng(2)
    wrong = np.arange(50) < 20
    found = beta_and_errors(rng.normal(0, 1, 50) - 0.5 * wrong, wrong)
    for area in found.interval:
        # Hanley and McNeil 1982, with (20 + 30) / 2 - 1 pairs for both terms.
        q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
        variance = area * (1 - area) + 24 * (q1 - area**2) + 24 * (q2 - area**2)
        error = math.sqrt(variance / (20 * 30))
        assert abs(area - found.auc) == pytest.approx(1.959964 * error, abs=1e-6)


def test_interval_at_the_ends():
    found = beta_and_errors([1, 2, 3, 4, 5, 6], [True] * 3 + [False] * 3)
    assert found.auc == 1.0
    assert found.interval[0] < 0.75 and found.interval[1] == 1.0
    found = beta_and_errors([2.0, 1.0], [True, False])
    assert found.auc == 0.0
    assert found.interval[0] == 0.0 and found.interval[1] > 0.5


def test_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(3)
    truth = 0.5 * (1 + math.erf(0.5))  # Of two normals, one standard deviation apart.
    wrong = np.arange(80) < 30
    hits = 0
    for _ in range(400):
        low, high = beta_and_errors(rng.normal(0, 1, 80) + ~wrong, wrong).interval
        hits += low < truth < high
    assert 0.92 <= hits / 400 <= 0.985


@pytest.mark.parametrize(
    "betas, flags, message",
    [
        ([1.0], [True, False], "betas of shape"),
        ([1.0, float("nan")], [True, False], "1 finite betas"),
        ([[1.0]], [[True]], "betas of shape"),
        ([1.0, 2.0], [True, True], "2 wrong, 0 right"),
        ([], [], "0 wrong, 0 right"),
    ],
)
def test_nothing_to_compare(betas, flags, message):
    with pytest.raises(ValueError, match=message):
        beta_and_errors(betas, flags)
