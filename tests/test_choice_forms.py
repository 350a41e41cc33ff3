"""Letters of choices in whatever form models write them, and letters that are none."""

import pathlib
import time

import pytest

from keras_betakd.evaluation import parse_choice, parse_letter_strict

PATH = pathlib.Path(__file__).with_name("choice_forms.txt")
STATES = ("Maryland", "New Hampshire", "Rhode Island", "Vermont")


def read_forms():
    """The texts of `choice_forms.txt` by section."""
    sections, texts = {}, None
    for line in PATH.read_text(encoding="utf-8").splitlines():
        if line.startswith("== "):
            texts = sections.setdefault(line.removeprefix("== "), [])
        elif texts is not None and line:
            texts.append(line.replace(r"\n", "\n"))
    return sections


FORMS = read_forms()
NAMING_B = [
    text
    for name, texts in FORMS.items()
    if name.startswith("names B")
    for text in texts
]


@pytest.mark.parametrize("text", NAMING_B)
def test_forms_that_name_b(text):
    """19 forms that models are known to write were not read, so counted as wrong."""
    assert parse_choice(text, STATES) == 1


@pytest.mark.parametrize("text", FORMS["several"])
def test_several_letters_and_refused_ones_are_no_answer(text):
    assert parse_choice(text, STATES) is None


@pytest.mark.parametrize("text", FORMS["no choice"])
def test_letters_that_are_no_choice(text):
    assert parse_choice(text, STATES) is None


@pytest.mark.parametrize(
    "text, expected",
    [
        # The rule for two letters: a refused one does not count, one that is stated
        # takes precedence over those that are mentioned.
        ("\\boxed{a}", 0),
        ("not B, it's C", 2),
        ("It's not B, it's C.", 2),
        ("A is a distractor. The answer is C.", 2),
        ("Option A fits, option C fits better. \\boxed{C}", 2),
        ("It is not \\boxed{A}. The answer is C.", 2),
        ("#### Step 1\nIt is C.", 2),
        ("The label (A) is wrong; (C) is the answer.", 2),
    ],
)
def test_one_of_two_letters(text, expected):
    assert parse_choice(text, STATES) == expected


@pytest.mark.parametrize(
    "text, choices, expected",
    [
        ('It is the letter "B".', ('the letter "A"', 'the letter "B"'), 1),
        ("$x^2$", ("$x$", "$x^2$"), 1),
        ("It is \\(x^2\\).", ("\\(x\\)", "\\(x^2\\)"), 1),
        ("- 5 m", ("5 m", "7 m"), 0),
        ("<b>", ("<b>", "<i>"), 0),
        ("<b>bold</b>", ("plain", "bold"), 1),
        ("\\text{water}", ("ice", "water"), 1),
        ("_E. coli_", ("E. coli", "C. elegans"), 0),
        ("C. elegans", ("E. coli", "C. elegans"), 1),
        ("It is vitamin C.", ("vitamin A", "vitamin C"), 1),
        ("[B] dog", ("cat", "dog"), 1),
        ("[A] dog", ("cat", "dog"), None),
        ("[A] cat [B] dog", ("cat", "dog"), None),
        ("B. Plant cells", ("Animals", "plant cells"), 1),
        ("B. Cells of plants", ("Animals", "plant cells"), 1),
        ("answer: E", ("a", "b", "c", "d", "e"), 4),
        ("variante.", ("v", "w", "x", "y", "z"), None),
        ("E. coli is one.", ("v", "w", "x", "y", "z"), None),
        ("It is I.", tuple("opqrstuvw"), 8),
    ],
)
def test_choices_that_look_like_forms(text, choices, expected):
    assert parse_choice(text, choices) == expected


@pytest.mark.parametrize(
    "piece",
    ["(", "_", "#", "- ", "<b>", "[A", '{"answer": "', "option A ", "not ", "\n"],
)
def test_no_text_takes_long(piece):
    """Nested repetitions in a pattern take for ever where a model repeats itself."""
    start = time.monotonic()
    parse_choice(piece * (4000 // len(piece)) + "B", STATES)
    assert time.monotonic() - start < 10


def test_the_published_scorer_reads_none_of_these():
    published = {"B", "B. It is in the north.", "B. Because it is in the north."}
    for text in (*FORMS["names B: marks"], *FORMS["names B: LaTeX"]):
        assert parse_letter_strict(text, STATES) == (1 if text in published else None)
