"""Reading choices out of answers, and ScienceQA accuracy."""

import json
import os

import pytest

from keras_betakd.data import ScienceQARecord
from keras_betakd.evaluation import (
    clean_answer,
    parse_choice,
    parse_letter_strict,
    score_scienceqa,
)

STATES = ("Maryland", "New Hampshire", "Rhode Island", "Vermont")
NINE = tuple(f"option number {i}" for i in range(9))

with open(os.path.join(os.path.dirname(__file__), "golden", "scienceqa.json")) as file:
    GOLDEN = {case["name"]: case for case in json.load(file)["scienceqa"]}


def golden_case(name):
    inputs = GOLDEN[name]["inputs"]
    records = [
        ScienceQARecord(id=pid, **inputs["problems"][pid])
        for pid in inputs["pid_splits"]["test"]
    ]
    predictions = {p["question_id"]: p["text"] for p in inputs["predictions"]}
    return records, predictions, GOLDEN[name]["expected"]


@pytest.mark.parametrize("name", ["parsing_mix", "bulk_with_missing_predictions"])
def test_strict_scores_are_the_published_ones(name):
    records, predictions, expected = golden_case(name)
    score = score_scienceqa(records, predictions, parser=parse_letter_strict)
    llava = expected["llava"]
    assert score.accuracy == pytest.approx(llava["acc"], abs=1e-6)
    assert score.llava_image_accuracy == pytest.approx(llava["img_acc"], abs=1e-6)
    assert (score.correct, score.total) == (llava["correct"], llava["total"])
    assert score.image_correct == llava["img_correct"]
    assert score.image_total - score.image_missing == llava["img_total"]
    official = expected["official"]["acc_has_image"]
    assert f"{score.image_accuracy:.2f}" == official
    for pid, index in llava["pred_index"].items():
        assert score.choices.get(pid) == (None if index == -1 else index), pid


def test_no_question_with_an_image():
    # The published scorer divides by zero.
    records, predictions, _ = golden_case("no_multimodal_item")
    score = score_scienceqa(records, predictions, parser=parse_letter_strict)
    assert score.image_total == 0
    assert score.image_accuracy is None
    assert score.llava_image_accuracy is None


@pytest.mark.parametrize(
    "text, expected",
    [
        ("B", 1),
        ("B. New Hampshire", 1),
        ("The answer is B.", 1),
        ("So. The answer is B!", 1),
        ("The answer is Apple.", 0),
        ("B.", None),
        ("(C)", None),
        ("A, because", None),
        ("c", None),
        ("The answer is D", None),
        ("The answer is B. The answer is A.", None),
        ("the answer is C.", None),
        ("E", None),
        ("The answer is F.", None),
        ("", None),
        ("AB", None),
    ],
)
def test_strict_parser(text, expected):
    assert parse_letter_strict(text, STATES) == expected


@pytest.mark.parametrize(
    "text",
    [
        "B",
        "b",
        "B.",
        "b.",
        "(B)",
        "(b)",
        "B)",
        "**B**",
        "**B.** New Hampshire",
        '"B"',
        " B\n",
        "B<|im_end|>",
        "B</s>",
        "B<end_of_turn>\n",
        "B: New Hampshire",
        "B, because it is in the north.",
        "B\nIt is in the north.",
        "(B) New Hampshire",
        "New Hampshire",
        "new hampshire.",
        "The colony shown is New Hampshire.",
        "The colony shown is **New Hampshire**.",
        "The answer is B",
        "The answer is B.",
        "The answer is b.",
        "The answer is (B).",
        "Answer: B",
        "The correct answer is option B.",
        "The correct option is B",
        "The answer to the question is B.",
        "The answer is B. Note that A is a common distractor.",
        "The answer is B, New Hampshire, not Maryland.",
        "I think it is B.",
        "I would choose B because it fits.",
        "Option B",
        "B is correct.",
        "A is wrong. B is correct.",
        "It is not Maryland but New Hampshire.",
        "A. Maryland B. New Hampshire C. Rhode Island D. Vermont. The answer is B.",
    ],
)
def test_choice_in_whatever_form(text):
    # Reported bug: a right answer in another form than a bare letter was wrong.
    assert parse_choice(text, STATES) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "None of these",
        "None of the above",
        "Don't know",
        "Answer",
        "Because",
        "a",
        "A dog is shown.",
        "a colony",
        "I think so",
        "I.",
        "E",
        "F.",
        "The answer is E.",
        "The answer is a mystery.",
        "The answer is A mystery.",
        "AB",
        "A or B",
        "The answer is A or B.",
        "The answer is B. The answer is A.",
        "Maryland or Vermont",
        "B. Vermont",
        "A. Maryland B. New Hampshire C. Rhode Island D. Vermont",
        "not B",
        "A, B and C",
        "D. C. is a town.",
        "I don't think it is Vermont.",
        "I am not sure whether it is C.",
        "It is not Maryland.",
        "B is not correct.",
        "Vitamin C has been found.",
        "It is C-shaped.",
        "The U.S.A. did",
        "New Hampshirean",
        "New",
    ],
)
def test_no_guess(text):
    # Reported bug: "None of the above" gave A and B, "Don't know" D, "Answer" A;
    # elsewhere, an unreadable answer became a random choice.
    assert parse_choice(text, STATES) is None


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_only_letters_of_choices_count(count):
    # Questions have two to five choices; code that took them for four read a letter
    # that is none.
    choices = ("Maryland", "New Hampshire", "Rhode Island", "Vermont", "Ohio")[:count]
    for index, letter in enumerate("ABCDEF"):
        expected = index if index < count else None
        for text in (letter, f"{letter}. ", f"The answer is {letter}."):
            assert parse_letter_strict(text, choices) == expected
            assert parse_choice(text, choices) == expected


def test_choices_with_marks_are_read_as_in_the_prompt():
    # Cleaning an answer took the mark out of such a choice, too: none was ever right.
    choices = ("<|image_pad|>", "the tag <img>", "text")
    assert parse_choice("< |image_pad|>", choices) == 0
    assert parse_choice("It is the tag < img>.<|im_end|>", choices) == 1
    assert parse_choice("<image>", ("<image>", "<video>")) == 0


def test_more_than_eight_choices():
    # Reported bug: the pronoun "I" was read as the ninth letter.
    assert parse_choice("I think it is C", NINE) == 2
    assert parse_choice("I think so", NINE) is None
    assert parse_choice("I, for one, would say so", NINE) is None
    assert parse_choice("The answer is I.", NINE) == 8
    assert parse_choice("(I)", NINE) == 8


@pytest.mark.parametrize(
    "text, choices, expected",
    [
        # One choice is part of another: the longest that fits.
        ("It is a guinea pig.", ("pig", "guinea pig"), 1),
        ("It is a pig.", ("pig", "guinea pig"), 0),
        ("A guinea pig, not a pig.", ("pig", "guinea pig"), 1),
        ("a pig and a guinea pig", ("pig", "guinea pig"), None),
        ("That is not a solid.", ("a solid", "not a solid"), 1),
        ("jelly-fish", ("fish", "dog"), None),
        # Choices that name letters, or are letters.
        ("Solution B", ("neither", "Solution A", "Solution B"), 2),
        ("The answer is Solution B.", ("neither", "Solution A", "Solution B"), 2),
        ("B", ("B", "A"), None),
        ("B", ("A", "B"), 1),
        ("A city", ("B town", "A city"), 1),
        ("The answer is B town.", ("B town", "A city"), 0),
        # Numbers.
        ("It is 20 km.", ("2 km", "20 km"), 1),
        ("It is 1.5 m.", ("5 m", "7 m"), None),
        ("5 m", ("-5 m", "5 m"), 1),
        ("It was -5 m.", ("-5 m", "5 m"), 0),
        # Case decides only between choices that differ in nothing else.
        ("Bb", ("BB", "Bb", "bb"), 1),
        ("It must be Bb.", ("BB", "Bb", "bb"), 1),
        ("bB", ("BB", "Bb", "bb"), None),
        ("red", ("red", "Red."), 0),
        ("same", ("same", "same"), None),
        # Words too common to be found inside a sentence.
        ("No one knows what it is", ("is", "was"), None),
        ("is", ("is", "was"), 0),
        ("Yes.", ("yes", "no"), 0),
        ("None of the above", ("red", "None of the above"), 1),
        ("Don't know", ("a", "b", "c", "d"), None),
        ("It's O\u2019Neill", ("O'Neill", "Smith"), 0),
    ],
)
def test_wording_of_the_choices(text, choices, expected):
    assert parse_choice(text, choices) == expected


def test_clean_answer():
    # Reported bug: "2011<|im_end|>" against "2011" scored nothing.
    assert clean_answer(" 2011<|im_end|>\nmore") == "2011"
    assert clean_answer("<bos>a < b</s></s>") == "a < b"
    assert clean_answer("<pad><pad>") == ""


def record(id, answer, image=None):
    return ScienceQARecord(id, "?", STATES, answer, image=image)


def test_score_counts_missing_and_unparsed_apart():
    records = [
        record("1", 1, "1.png"),
        record("2", 1, "2.png"),
        record("3", 1, "3.png"),
        record("4", 1),
        record("5", 0),
    ]
    predictions = {"1": "New Hampshire", "2": "no idea", "4": "B", "5": "D", "9": "A"}
    score = score_scienceqa(records, predictions)
    assert (score.correct, score.total, score.accuracy) == (2, 5, 40.0)
    assert (score.image_correct, score.image_total) == (1, 3)
    assert score.image_accuracy == pytest.approx(100 / 3)
    assert score.llava_image_accuracy == 50.0
    assert (score.unparsed, score.missing, score.image_missing) == (1, 1, 1)
    assert score.choices == {"1": 1, "2": None, "4": 1, "5": 3}
    assert score.prompt_format == "CQM-A"


def test_score_refuses_what_it_cannot_score():
    with pytest.raises(TypeError, match="list"):
        score_scienceqa([record("1", 0)], ["A"])
    with pytest.raises(ValueError, match="0 records"):
        score_scienceqa([], {})
    with pytest.raises(ValueError, match="2 records with 1 different"):
        score_scienceqa([record("1", 0), record("1", 1)], {"1": "A"})
