"""MMBench: two public sets of rules, circular and vanilla accuracy, the prompts."""

import base64
import csv

import pytest
from benchmark_golden import cases

from keras_betakd.evaluation.benchmarks.mmbench import score_mmbench
from keras_betakd.evaluation.benchmarks.mmbench_matching import (
    match_opencompass,
    match_vlmevalkit,
)
from keras_betakd.evaluation.benchmarks.mmbench_questions import (
    MMBenchQuestion,
    load_mmbench,
    mmbench_prompt,
    mmbench_submission,
)
from keras_betakd.evaluation.llava_protocol import llava_answers

RULES = ("vlmevalkit_exact", "opencompass_prefetch")
CHOICES = {"A": "red", "B": "blue", "C": "a cat", "D": "two cats"}


def questions_of(inputs):
    return [MMBenchQuestion.from_row(row) for row in inputs["rows"]]


def question(index=7, answer="A", options=("cat", "dog"), **fields):
    return MMBenchQuestion(index, "What is it?", options, answer, **fields)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("golden", cases("mmbench"))
def test_published_scores(golden, rule):
    answers = llava_answers(golden["inputs"]["predictions"])
    found = score_mmbench(questions_of(golden["inputs"]), answers, rule)
    expected = golden["expected"][rule]
    assert found.choices == expected["row_option"]
    assert found.hits == expected["hit"]
    circular, vanilla = expected["circular_accuracy"], expected["vanilla_accuracy"]
    assert found.circular_accuracy == pytest.approx(100 * circular, abs=1e-6)
    assert found.vanilla_accuracy == pytest.approx(100 * vanilla, abs=1e-6)
    report = {"Overall": found.circular, **found.per_l2, **found.per_category}
    assert {name: value.percent for name, value in report.items()} == {
        name: pytest.approx(100 * value, abs=1e-6)
        for name, value in expected["report"].items()
    }


@pytest.mark.parametrize("golden", cases("mmbench"))
def test_published_submission(golden):
    answers = llava_answers(golden["inputs"]["predictions"])
    rows = mmbench_submission(questions_of(golden["inputs"]), answers)
    assert list(rows[0]) == golden["expected"]["xlsx_columns"]
    for row, source in zip(rows, golden["inputs"]["rows"], strict=True):
        for column in ("index", "question", "A", "B", "C", "D", "answer", "split"):
            assert row[column] == source[column]
        assert row["prediction"] == answers.get(str(row["index"]))


@pytest.mark.parametrize("golden", cases("prompts", "scienceqa_cqm_a"))
def test_published_prompts(golden):
    questions = questions_of(golden["inputs"])
    for found, expected in zip(questions, golden["expected"], strict=True):
        assert found.asked_options == expected["options"]
        assert mmbench_prompt(found) == expected["model_question"]


@pytest.mark.parametrize(
    "text, toolkit, opencompass",
    [
        ("B", "B", "B"),
        ("B.", "B", "B"),
        ("(B)", "B", "B"),
        ("**B**", "B", None),
        ("The answer is B", "B", "B"),
        ("The answer is A", "A", None),  # "A" among more than three words.
        ("A thing on the table", None, None),
        ("B or A", None, None),
        ("The answer is b, or A, or C", "B", "C"),
        ("answer is blue", "B", "B"),  # The toolkit: its first letter; else the text.
        ("answer is dark", "D", None),
        ("It is blue", "B", "B"),
        ("red or blue", None, None),
        ("two cats", "D", "D"),
        ("E", None, "E"),
        ("Z", "Z", None),
        ("Cannot determine the answer: blue", "Z", "B"),
        ("Failed to obtain answer via API", None, None),
        ("C it may be of them all", None, "C"),  # Not among the last four words.
        ("nothing " * 9 + "blue", None, "B"),  # Longer than all options twice over.
        ("", None, None),
    ],
)
def test_traps_of_the_rules(text, toolkit, opencompass):
    assert match_vlmevalkit(text, CHOICES) == toolkit
    assert match_opencompass(text, CHOICES) == opencompass


STATES = {"A": "Maryland", "B": "New Hampshire", "C": "Rhode Island", "D": "Vermont"}


@pytest.mark.parametrize("match", [match_vlmevalkit, match_opencompass])
def test_right_answers_in_other_forms_and_letters_in_words(match):
    # Reported bug: only a bare letter was right, and one was picked out of any word.
    right = ("B", "B.", "New Hampshire", "The colony shown is New Hampshire.")
    assert [match(text, STATES) for text in right] == ["B"] * 4
    for text in ("", "None of these", "None of the above", "Don't know", "Answer"):
        assert match(text, STATES) is None


def test_only_letters_of_options_that_are_there():
    options = {"A": "cat", "B": "dog"}
    found = [match_vlmevalkit(letter, options) for letter in "ABCDE"]
    assert found == ["A", "B", None, None, None]


def test_by_hand():
    # Question 7 is right in both its rows, 8 in its original only: circular 1 of 2,
    # vanilla 2 of 2.
    rows = [
        question(7, "A", l2_category="coarse_perception", category="image_scene"),
        question(8, "B", l2_category="logic_reasoning", category="image_topic"),
        question(1000007, "B"),
        question(1000008, "A"),
    ]
    answers = {7: "A", "8": "dog", 1000007: "B.", 1000008: "I see nothing", 99: "A"}
    found = score_mmbench(rows, answers)
    assert (found.circular_accuracy, found.vanilla_accuracy) == (50.0, 100.0)
    assert (found.per_l2["CP"].percent, found.per_l2["LR"].percent) == (100.0, 0.0)
    assert found.per_category["image_topic"].percent == 0.0
    assert (found.n, found.unparsed, found.missing) == (2, 1, 0)
    # Wilson, 1 of 2: 0.5 -+ 0.4055.
    assert found.interval == pytest.approx((9.4531, 90.5469), abs=1e-3)


def test_missing_and_refused_answers_are_wrong():
    rows = [question(7), question(8), question(9)]
    found = score_mmbench(rows, {7: "Z", 8: ""})
    assert found.choices == {"7": "Z", "8": None, "9": None}
    assert (found.circular_accuracy, found.unparsed, found.missing) == (0.0, 2, 1)


def test_an_empty_cell_is_read_as_the_text_nan():
    # So where sodium is the answer, no answer is the right one.
    found = score_mmbench([question(options=("Na", "K"))], {})
    assert (found.circular_accuracy, found.missing) == (100.0, 1)


def test_wrong_input():
    with pytest.raises(ValueError, match="`rule` must be one of.*'gpt'"):
        score_mmbench([question()], {}, rule="gpt")
    with pytest.raises(ValueError, match="'1000007' is a copy of row '7'"):
        score_mmbench([question(1000007)], {})
    with pytest.raises(ValueError, match="no right answer, as in the test split"):
        score_mmbench([question(answer=None)], {})
    with pytest.raises(ValueError, match="2 questions with 1 different"):
        score_mmbench([question(7), question("07")], {})
    with pytest.raises(TypeError, match="must be a string.*None"):
        score_mmbench([question()], {7: None})
    with pytest.raises(ValueError, match="an integer as its index.*'x7'"):
        question("x7")
    with pytest.raises(ValueError, match="one to four options"):
        question(options=())
    with pytest.raises(ValueError, match="needs the column 'A'"):
        MMBenchQuestion.from_row({"index": 7, "question": "?"})


COLUMNS = "index question hint A B C D answer category image l2-category split".split()


def write_table(path, *rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerows([COLUMNS, *rows])
    return path


def test_table(tmp_path):
    image = base64.b64encode(b"picture" * 30_000).decode()
    path = write_table(
        tmp_path / "dev.tsv",
        [7, 'Say "hi"\nor "bye"?', "", "N/A", "na", "c\td", "", "B", "x", image]
        + ["coarse_perception", "dev"],
        [1000007, "What?", "nan", "one", "None", "3", "4", "D", "x", "7", "", "dev"],
    )
    limit = csv.field_size_limit()
    first, copy = load_mmbench(path)
    assert csv.field_size_limit() == limit
    assert first.question == 'Say "hi"\nor "bye"?'
    assert first.options == (None, "na", "c\td", None)
    assert first.choices == {"B": "na", "C": "c\td"}
    assert (first.hint, first.answer, first.l2_category) == (
        None,
        "B",
        "coarse_perception",
    )
    assert first.image == b"picture" * 30_000
    assert copy.image == first.image  # The toolkit's tables hold an image once.
    # An option "None" hides the right one, as published.
    assert (copy.asked_options, copy.original, copy.hint) == (["one"], "7", None)
    assert "picture" not in repr(first) and len(repr(first)) < 500


def test_invalid_tables(tmp_path):
    row = [7, "?", "", "a", "b", "", "", "A", "x", "%", "", "dev"]
    path = write_table(tmp_path / "dev.tsv", row, row[:5])
    with pytest.raises(ValueError, match="row 2: must have as many cells.*'7'"):
        load_mmbench(path)
    write_table(path, ["x", *row[1:]])
    with pytest.raises(ValueError, match="row 1: A row needs an integer"):
        load_mmbench(path)
    write_table(path, row)
    with pytest.raises(ValueError, match="Question '7': its image is not in base64"):
        assert load_mmbench(path)[0].image
    assert question().image is None
