"""Answers of models that reason: what follows their thoughts is scored."""

import pytest

from keras_betakd.data import ScienceQARecord
from keras_betakd.evaluation import (
    GQAQuestion,
    MMBenchQuestion,
    MMEQuestion,
    POPEQuestion,
    TextVQAQuestion,
    clean_answer,
    mmbench_submission,
    parse_choice,
    parse_letter_strict,
    parse_mme,
    parse_pope,
    score_gqa,
    score_mmbench,
    score_mme,
    score_pope,
    score_scienceqa,
    score_textvqa,
)
from keras_betakd.evaluation.answer_text import (
    final_answer,
    thought_counts,
    without_end_mark,
    without_marks,
)
from keras_betakd.evaluation.benchmarks.registry import BENCHMARKS
from keras_betakd.evaluation.report import table

STATES = ("Maryland", "New Hampshire")
# In them are the words that each scorer looks for.
THOUGHTS = "\nThe answer is A? No, it is red. Yes or no: A. Maryland.\n"
CLOSED = f"<think>{THOUGHTS}</think>\n\n"
OPEN = f"<think>{THOUGHTS}"
# Two questions each, where they come in pairs; the second has the other answer.
QUESTIONS = {
    "scienceqa": [ScienceQARecord("1", "Which?", STATES, 1)],
    "gqa": [GQAQuestion("1", "Is it red?", "yes", structural="verify", group="x")],
    "textvqa": [TextVQAQuestion("1", "Brand?", "a1", ["dakota"] * 10)],
    "pope": [
        POPEQuestion("1", "?", "random", "yes"),
        POPEQuestion("2", "?", "random", "no"),
    ],
    "mme": [
        MMEQuestion("1", "?", "OCR", "1", "yes"),
        MMEQuestion("2", "?", "OCR", "1", "no"),
    ],
    "mmbench": [MMBenchQuestion("1", "?", STATES, "B")],
}
RIGHT = {
    "scienceqa": {"1": "B"},
    "gqa": {"1": "Yes"},
    "textvqa": {"1": "Dakota"},
    "pope": {"1": "Yes", "2": "No"},
    "mme": {"1": "Yes", "2": "No"},
    "mmbench": {"1": "B"},
}
ACCURACY = {
    "scienceqa": lambda q, a: score_scienceqa(q, a).accuracy,
    "gqa": lambda q, a: score_gqa(q, a).accuracy,
    "textvqa": lambda q, a: score_textvqa(q, a).accuracy,
    "pope": lambda q, a: score_pope(q, a).per_category["random"].accuracy,
    "mme": lambda q, a: score_mme(q, a).per_task["OCR"].accuracy,
    "mmbench": lambda q, a: score_mmbench(q, a).circular_accuracy,
}


@pytest.mark.parametrize("name", BENCHMARKS)
@pytest.mark.parametrize("thoughts", [CLOSED, "<think>\n\n</think>\n\n", "B? </think>"])
def test_what_follows_the_thoughts_is_scored(name, thoughts):
    """ScienceQA read A, POPE's "No" was yes, and GQA and TextVQA scored 0."""
    answers = {k: thoughts + text for k, text in RIGHT[name].items()}
    assert ACCURACY[name](QUESTIONS[name], answers) == 100.0
    outcomes = BENCHMARKS[name].outcomes(QUESTIONS[name], answers)
    assert all(outcome.right for outcome in outcomes.values())


@pytest.mark.parametrize("name", BENCHMARKS)
@pytest.mark.parametrize("silent", [OPEN, CLOSED, f"{CLOSED}<think>Or"])
def test_thoughts_without_an_answer_are_wrong(name, silent):
    """No part of them is an answer, nor is silence, which POPE takes for yes."""
    questions, answers = QUESTIONS[name], dict.fromkeys(RIGHT[name], silent)
    outcomes = BENCHMARKS[name].outcomes(questions, answers)
    assert {(found.answer, found.right) for found in outcomes.values()} == {
        (None, False)
    }
    if name == "pope":
        # The F1 of answers that are all wrong is not defined: one is right.
        questions = [*questions, POPEQuestion("3", "?", "random", "yes")]
        found = score_pope(questions, {**answers, "3": "yes"})
        counts = found.per_category["random"]
        assert (counts.tp, counts.fp, counts.tn, counts.fn) == (1, 1, 0, 1)
        assert (found.parsed["1"], found.unparsed) == (None, 2)
        assert counts.yes_ratio == pytest.approx(100 / 3)
    else:
        assert ACCURACY[name](questions, answers) == 0.0


def test_an_answer_that_is_the_same_as_silence():
    """ "a" is empty in TextVQA, and an empty cell of MMBench reads "nan"."""
    question = TextVQAQuestion("1", "Which letter?", "a1", ["a"] * 10)
    assert score_textvqa([question], {"1": ""}).accuracy == 100.0
    assert score_textvqa([question], {"1": OPEN}).accuracy == 0.0
    rows = [MMBenchQuestion("1", "Symbol of sodium?", ("Na", "K"), "A")]
    assert score_mmbench(rows, {"1": ""}).circular_accuracy == 100.0
    found = score_mmbench(rows, {"1": OPEN})
    assert (found.circular_accuracy, found.choices["1"], found.unparsed) == (0, None, 1)
    assert mmbench_submission(rows, {"1": OPEN})[0]["prediction"] is None
    assert mmbench_submission(rows, {"1": CLOSED + "A"})[0]["prediction"] == "A"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("<think>A</think>B", "B"),
        ("<THINK>A</THINK>\nB", "B"),
        ("< think >A</ think >B", "B"),
        ("<think\n>A< / think>B", "B"),
        ("<thinking>A</thinking>B", "B"),
        ("<thought>A</thought>B", "B"),
        ("<reasoning>A</reasoning>B", "B"),
        ("<|think|>A<|/think|>B", "B"),
        ("<|think|>A</think>B", "B"),
        ("<|begin_of_thought|>A<|end_of_thought|>B", "B"),
        ("<|START_THINKING|>A<|END_THINKING|>B", "B"),
        ("<|channel>thought\nA<channel|>B<turn|>", "B"),
        ("<|channel|>analysis<|message|>A", None),
        (
            "<|channel|>analysis<|message|>A<|end|><|start|>assistant"
            "<|channel|>final<|message|>B<|return|>",
            "B",
        ),
        ("[THINK]A[/THINK]B", "B"),
        ("◁think▷A◁/think▷B", "B"),
        ("<seed:think>A</seed:think>B", "B"),
        ('<think budget="9">A</think>B', "B"),
        ("<think/>B", "B"),
        # The template opened the thoughts in the prompt.
        ("A? No.\n</think>\n\nB", "B"),
        # Several, nested, repeated.
        ("<think>A</think>C<think>D</think>B", "B"),
        ("<think>A<think>C</think>D</think>B", "B"),
        ("<think>A<think>C</think>B", "B"),
        ("<think>A</think></think>B", "B"),
        # Not closed, or nothing behind.
        ("<think>A", None),
        ("<think>", None),
        ("B<think>A", None),
        ("<think>A</think>B<think>C", None),
        ("<think>A</think>", None),
        ("<think>A</think> \n", None),
        # The end of the output within the thoughts.
        ("<think>A<|im_end|></think>B", None),
        ("<think>A</think>B<|im_end|><think>C", "B"),
        # A mark that is spoken of is none; nor are words.
        ("The tag is `<think>`.", "The tag is `<think>`."),
        ('<think>I close with "</think>". A', None),
        ("<think>Not \"<think>\" again</think>It is '</think>'.", "It is '</think>'."),
        ("I think B", "I think B"),
        ("<thinker>B", "<thinker>B"),
        ("think>B", "think>B"),
        ("[thinking] B", "[thinking] B"),
    ],
)
def test_marks_of_thoughts(text, expected):
    assert final_answer(without_end_mark(text)) == expected
    assert clean_answer(text) == (expected or "")


def test_the_thoughts_stay_in_what_is_kept():
    text = f"<|think|>{THOUGHTS}<|/think|>\n\nB"
    assert without_marks(f" <|im_start|>{text}<|im_end|>\n<pad>") == text
    assert clean_answer(text) == "B"


def test_published_scorers_read_the_thoughts():
    """Their numbers are those of the published code, whatever the text."""
    assert parse_letter_strict(CLOSED + "B", STATES) == 0
    assert parse_choice(CLOSED + "B", STATES) == 1
    assert parse_pope("<think></think>No") == "yes"
    assert parse_mme("<think></think>Yes") == "other"
    records, answers = QUESTIONS["scienceqa"], {"1": CLOSED + "B"}
    published = score_scienceqa(records, answers, parser=parse_letter_strict)
    assert published.choices == {"1": 0}


def test_a_choice_may_be_such_a_mark():
    assert parse_choice("It is `<think>`.", ("<think>", "<div>")) == 0


def test_the_report_says_how_many():
    found = thought_counts(["B", CLOSED + "B", OPEN, "</think>B</s>", "`<think>`"])
    assert found == {"answers": 3, "without_answer": 1}
    report = {
        "title": "t",
        "model": "m",
        "official": "o",
        "scores": {},
        "categories": {},
        "note": "",
        "new_tokens": {"most": 4, "least": 4, "limited_questions": 0},
        "thoughts": found,
    }
    text = table(report)
    assert "3 answers hold a model's thoughts: what follows them is scored\n" in text
    assert "1 of these are thoughts without an answer" in text
    report["scores"] = {
        "IMG accuracy, published scorer": {"value": 1, "interval": None}
    }
    assert "by the published scorer, which reads them too" in table(report)
    report["thoughts"] = thought_counts(["B"])
    assert "thoughts" not in table(report)
