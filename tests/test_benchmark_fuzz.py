"""Random answers never crash a scorer or give a score outside its range."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_betakd.data import ScienceQARecord
from keras_betakd.evaluation import (
    parse_choice,
    parse_letter_strict,
    score_scienceqa,
)
from keras_betakd.evaluation.benchmarks.gqa import score_gqa
from keras_betakd.evaluation.benchmarks.gqa_questions import GQAQuestion
from keras_betakd.evaluation.benchmarks.mmbench import MMBENCH_RULES, score_mmbench
from keras_betakd.evaluation.benchmarks.mmbench_questions import MMBenchQuestion
from keras_betakd.evaluation.benchmarks.mme import score_mme
from keras_betakd.evaluation.benchmarks.mme_questions import MME_PERCEPTION, MMEQuestion
from keras_betakd.evaluation.benchmarks.pope import score_pope
from keras_betakd.evaluation.benchmarks.pope_questions import (
    POPE_CATEGORIES,
    POPEQuestion,
)
from keras_betakd.evaluation.benchmarks.scienceqa import scienceqa_categories
from keras_betakd.evaluation.benchmarks.textvqa import score_textvqa
from keras_betakd.evaluation.benchmarks.textvqa_questions import (
    TextVQAQuestion,
    textvqa_answers,
    textvqa_prompt,
)
from keras_betakd.evaluation.llava_protocol import llava_answers

N = 20
OPTIONS = ("cat", "None of the above", "a", "two cats (A)")

# Anything, and what the parsers look for, in any order and surroundings.
PIECES = st.sampled_from(
    "A B (C) D. E Z a yes No not NO the answer is ** 's don't one none , . ? ! / - \n "
    "\t 3.5 cat cats <image> ' \" \u0130 \u2019 \u0661 \0 \r \u2028".split(" ")
)
TEXTS = st.text(max_size=40) | st.lists(PIECES, max_size=8).map(" ".join)
ANSWERS = st.lists(TEXTS, min_size=N, max_size=N).map(
    lambda texts: dict(enumerate(texts))
)
PEOPLE = ("cat", "Cat.", "a cat", "2 cats", "two cats", "", "a", "No", "3.5", "yes")
QUESTIONS = {
    "gqa": [
        GQAQuestion(k, "Is it?", OPTIONS[k % 4], structural="query", group="x")
        for k in range(N)
    ],
    "textvqa": [TextVQAQuestion(k, f"What {k}?", "a1", PEOPLE) for k in range(N)],
    "pope": [
        POPEQuestion(k, "?", POPE_CATEGORIES[k % 3], ("yes", "no")[k // 3 % 2])
        for k in range(N)
    ],
    "mme": [
        MMEQuestion(k, "?", MME_PERCEPTION[k // 2], "1", ("yes", "no")[k % 2])
        for k in range(N)
    ],
    "mmbench": [
        MMBenchQuestion(k // 2 + k % 2 * 1_000_000, "?", OPTIONS, "ABCD"[k % 4])
        for k in range(N)
    ],
    "scienceqa": [
        ScienceQARecord(str(k), "?", OPTIONS, k % 4, hint="h" * (k % 2))
        for k in range(N)
    ],
}


def assert_valid(score, number):
    low, high = score.interval
    assert 0.0 <= low <= number + 1e-9 and number - 1e-9 <= high <= 100.0
    assert 0 <= score.unparsed <= N and score.missing == 0


def check_gqa(questions, answers):
    score = score_gqa(questions, answers)
    assert_valid(score, score.accuracy)
    assert score.distribution >= 0.0


def check_textvqa(questions, answers):
    lines = [
        {
            "question_id": "a1",
            "prompt": textvqa_prompt(question).removeprefix("<image>\n"),
            "text": answers[int(question.id)],
        }
        for question in questions
    ]
    score = score_textvqa(questions, textvqa_answers(questions, lines))
    assert_valid(score, score.accuracy)


def check_pope(questions, answers):
    try:
        score = score_pope(questions, answers)
    except ValueError as error:
        assert "is not defined" in str(error)  # As documented: no right yes.
    else:
        assert_valid(score, score.mean_f1)


def check_mme(questions, answers):
    score = score_mme(questions, answers)
    assert 0.0 <= score.perception <= 2000.0
    assert set(score.parsed.values()) <= {"yes", "no", "other"}


def check_mmbench(rows, answers):
    answers = {row.id: text for row, text in zip(rows, answers.values(), strict=True)}
    for rule in MMBENCH_RULES:
        score = score_mmbench(rows, answers, rule)
        assert_valid(score, score.circular_accuracy)
        assert score.circular_accuracy <= score.vanilla_accuracy
        assert set(score.choices.values()) <= {*"ABCDEZ", None}


def check_scienceqa(records, answers):
    answers = {str(name): text for name, text in answers.items()}
    for parser in (parse_choice, parse_letter_strict):
        score = score_scienceqa(records, answers, parser=parser)
        table = scienceqa_categories(records, score)
        assert table["Avg"].percent == score.accuracy
        assert table["TXT"].correct + table["NO"].correct == score.correct


CHECKS = {
    "gqa": check_gqa,
    "textvqa": check_textvqa,
    "pope": check_pope,
    "mme": check_mme,
    "mmbench": check_mmbench,
    "scienceqa": check_scienceqa,
}


@settings(max_examples=500)
@given(ANSWERS)
def test_ten_thousand_answers(answers):
    """Passes 500 times 20 random answers to every scorer."""
    for benchmark, check in CHECKS.items():
        check(QUESTIONS[benchmark], answers)


SCORERS = {
    "gqa": score_gqa,
    "textvqa": score_textvqa,
    "pope": score_pope,
    "mme": score_mme,
    "mmbench": score_mmbench,
}
ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
IDS = st.integers(0, N) | st.integers(0, N).map(str) | ANYTHING
VALUES = TEXTS | ANYTHING | st.lists(TEXTS, max_size=2)
few = settings(max_examples=200)


@pytest.mark.parametrize("benchmark", SCORERS)
@few
@given(predictions=st.dictionaries(IDS, VALUES, max_size=N) | VALUES)
def test_predictions_of_any_kind(benchmark, predictions):
    """Arbitrary ids and answers give a score or a documented error."""
    try:
        score = SCORERS[benchmark](QUESTIONS[benchmark], predictions)
    except (TypeError, ValueError) as error:
        assert "Received" in str(error)
    else:
        assert score.missing <= N


@few
@given(st.lists(st.dictionaries(st.sampled_from(["question_id", "text"]), VALUES)))
def test_answer_lines_of_any_kind(lines):
    try:
        answers = llava_answers(lines)
    except ValueError as error:
        assert "needs a string under the key" in str(error)
    else:
        assert all(isinstance(text, str) for text in answers.values())
