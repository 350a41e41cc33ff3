"""ScienceQA's official table, and intervals beside scores."""

import math

import pytest
from benchmark_golden import cases

from keras_betakd.data import ScienceQARecord
from keras_betakd.evaluation import parse_letter_strict, score_scienceqa
from keras_betakd.evaluation.benchmarks.scienceqa import scienceqa_categories
from keras_betakd.evaluation.intervals import (
    Accuracy,
    mean_interval,
    wilson_interval,
)
from keras_betakd.evaluation.llava_protocol import llava_answers

OFFICIAL = {
    "NAT": "acc_natural",
    "SOC": "acc_social",
    "LAN": "acc_language",
    "TXT": "acc_has_text",
    "IMG": "acc_has_image",
    "NO": "acc_no_context",
    "G1-6": "acc_grade_1_6",
    "G7-12": "acc_grade_7_12",
    "Avg": "acc_average",
}


@pytest.mark.parametrize("golden", cases("scienceqa", "no_multimodal_item"))
def test_published_table(golden):
    inputs = golden["inputs"]
    records = [
        ScienceQARecord(id=pid, **inputs["problems"][pid])
        for pid in inputs["pid_splits"]["test"]
    ]
    answers = llava_answers(inputs["predictions"])
    score = score_scienceqa(records, answers, parser=parse_letter_strict)
    table = scienceqa_categories(records, score)
    assert list(table) == list(OFFICIAL)
    for name, key in OFFICIAL.items():
        assert f"{table[name].percent:.2f}" == golden["expected"]["official"][key]


def record(id, answer=0, **fields):
    return ScienceQARecord(id, "?", ("x", "y"), answer, **fields)


def test_by_hand():
    # A question with a hint and an image is in TXT and in IMG.
    both = record("1", hint="h", image="a.png", grade="grade6")
    neither = record("2", grade="grade7", subject="social science")
    score = score_scienceqa([both, neither], {"1": "A", "2": "B"})
    table = scienceqa_categories([both, neither], score)
    found = {name: value.percent for name, value in table.items() if value}
    assert found == {
        "TXT": 100.0,
        "IMG": 100.0,
        "G1-6": 100.0,
        "SOC": 0.0,
        "NO": 0.0,
        "G7-12": 0.0,
        "Avg": 50.0,
    }
    assert table["NAT"] is None  # The official script prints -1.


def test_intervals_of_the_score():
    with_image = [record(str(k), image="a.png") for k in range(3)]
    answers = {"0": "A", "1": "A", "2": "B", "3": "B"}
    score = score_scienceqa([*with_image, record("3")], answers)
    assert score.n == 4
    assert score.interval == Accuracy(2, 4).interval
    assert score.image_interval == Accuracy(2, 3).interval
    assert score_scienceqa([record("1")], answers).image_interval is None


def test_the_score_of_other_questions():
    score = score_scienceqa([record("1"), record("2")], {"1": "A"})
    with pytest.raises(ValueError, match="1 records, 1 answered rightly; a score of 2"):
        scienceqa_categories([record("1")], score)


def test_wilson_interval_solves_its_equation():
    # Its ends are the p at which the count lies 1.96 standard deviations away.
    for successes, n in [(0, 7), (3, 10), (50, 50), (611, 4241)]:
        for p in wilson_interval(successes, n):
            deviation = abs(successes - n * p)
            expected = 1.959964 * math.sqrt(n * p * (1 - p))
            assert deviation == pytest.approx(expected, abs=1e-4)


def test_intervals_hold_the_score():
    for n in range(1, 30):
        for correct in range(n + 1):
            accuracy = Accuracy(correct, n)
            low, high = accuracy.interval
            assert 0.0 <= low <= accuracy.percent <= high <= 100.0


def test_mean_interval():
    assert mean_interval([0.5]) is None
    assert mean_interval([0.3, 0.3]) == pytest.approx((0.3, 0.3))
    # s = 0.5, error 0.5 / 2: 0.25 -+ 0.49, cut at 0.
    assert mean_interval([0.0, 0.0, 0.0, 1.0]) == pytest.approx(
        (0.0, 0.73999), abs=1e-4
    )


@pytest.mark.parametrize("correct, n", [(0, 0), (-1, 3), (4, 3)])
def test_no_accuracy(correct, n):
    with pytest.raises(ValueError, match="0 <= successes <= n and n >= 1"):
        Accuracy(correct, n)
