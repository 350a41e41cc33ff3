"""TextVQA: the published normalizer, soft score and matching of questions."""

import json

import pytest
from benchmark_golden import case, cases, write_jsonl

from keras_betakd.evaluation.benchmarks.textvqa import score_textvqa
from keras_betakd.evaluation.benchmarks.textvqa_questions import (
    TextVQAQuestion,
    load_textvqa,
    textvqa_answers,
    textvqa_prompt,
)
from keras_betakd.evaluation.benchmarks.vqa_normalization import (
    CONTRACTIONS,
    normalize_vqa_answer,
)

SUFFIX = "\nAnswer the question using a single word or phrase."


def questions_of(inputs):
    return [
        TextVQAQuestion(a["question_id"], a["question"], a["image_id"], a["answers"])
        for a in inputs["annotations"]
    ]


def score(golden):
    questions = questions_of(golden["inputs"])
    answers = textvqa_answers(questions, golden["inputs"]["predictions"])
    return score_textvqa(questions, answers)


def question(id="1", text="What brand?", people=("x",) * 10, **fields):
    return TextVQAQuestion(id, text, "a1", people, **fields)


def line(prompt, text="x", image_id="a1"):
    return {"question_id": image_id, "prompt": prompt, "text": text}


@pytest.mark.parametrize(
    "golden", cases("textvqa", "normaliser_strings", "wrong_answer_count_raises")
)
def test_published_scores(golden):
    found, expected = score(golden), golden["expected"]
    assert found.accuracy == pytest.approx(expected["accuracy_percent"], abs=1e-6)
    per_question = expected["per_question"]
    scores = [entry["score"] for entry in per_question]
    assert list(found.scores.values()) == pytest.approx(scores, abs=1e-6)
    for prediction, entry in zip(
        golden["inputs"]["predictions"], per_question, strict=True
    ):
        normalized = normalize_vqa_answer(prediction["text"])
        assert normalized == entry["normalised_pred"]


def test_published_normalizer():
    golden = case("textvqa", "normaliser_strings")
    normalized = [normalize_vqa_answer(text) for text in golden["inputs"]["strings"]]
    assert normalized == golden["expected"]["normalised"]
    assert len(CONTRACTIONS) == 112


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a", ""),
        ("a/b c", "b c"),
        ("a/ b/c", "bc"),  # One slash next to a space: all go.
        ("somebody'd", "somebodyd"),  # An error of the table, part of the numbers.
        ("let's", "let 's"),
        ("dont cant", "don't can't"),
        ("1.5.", "1.5"),
        ("No. 5.", "no 5"),
        ("v.2", "v.2"),
        ("none Ten eleven", "0 10 eleven"),
        ("." * 40, "." * 8),  # Only the first 32 periods go.
        ("", ""),
    ],
)
def test_traps_of_the_normalizer(text, expected):
    assert normalize_vqa_answer(text) == expected


def test_wrong_number_of_annotators():
    # The published scorer asserts.
    with pytest.raises(ValueError, match="'1': `answers` must be 10 strings"):
        score(case("textvqa", "wrong_answer_count_raises"))


def test_by_hand():
    # Two of ten say "cat" (one as "a cat"). Leaving one of those two out, 1/3 of the
    # credit is left, leaving one of the other eight out, 2/3: (2/3 + 16/3) / 10 = 0.6.
    # The other answer is that of all ten: the mean is 0.8.
    people = ["cat", "A cat."] + ["dog"] * 8
    questions = [
        question("1", people=people),
        question("2", "Who?"),
        question("3", "?"),
    ]
    found = score_textvqa(questions, {1: "CAT", 2: "x"})
    assert found.scores == {"1": pytest.approx(0.6), "2": 1.0}
    assert found.accuracy == pytest.approx(80.0)
    assert (found.n, found.unparsed, found.missing) == (2, 0, 1)
    # s = 0.2 sqrt(2), standard error 0.2: 80 -+ 39.2, cut at 100.
    assert found.interval == pytest.approx((40.8007, 100.0), abs=1e-3)


@pytest.mark.parametrize("equal, expected", enumerate((0.0, 0.3, 0.6, 0.9, 1.0, 1.0)))
def test_the_soft_score_leaves_each_person_out_in_turn(equal, expected):
    # Not min(1, equal / 3), which would be 0, 0.33, 0.67, 1.
    people = ["black"] * equal + ["other"] * (10 - equal)
    found = score_textvqa([question(people=people)], {"1": "Black."})
    assert found.scores["1"] == pytest.approx(expected)


def test_answers_are_normalized_even_where_all_ten_agree():
    # Reported bug: only then not, and "Black." against ten times "black" scored 0.
    questions = [
        question("1", people=["black"] * 10),
        question("2", "?", ["2011"] * 10),
    ]
    found = score_textvqa(questions, {"1": "Black.", "2": "2011<|im_end|>"})
    assert found.scores == {"1": 1.0, "2": 1.0}


def test_an_article_alone_equals_an_empty_answer():
    found = score_textvqa([question(people=[""] * 10)], {"1": "a"})
    assert (found.accuracy, found.unparsed, found.interval) == (100.0, 1, None)


@pytest.mark.parametrize(
    "prompt",
    [
        f"what Brand?{SUFFIX}",
        f"What brand?\nReference OCR token: a, b{SUFFIX}",
        f"Reference OCR token: a, b\nWhat brand?{SUFFIX}",
        "OCR tokens: a\nb. Question: What brand? Short answer:",
    ],
)
def test_forms_of_the_logged_prompt(prompt):
    assert textvqa_answers([question(34602)], [line(prompt, "y")]) == {"34602": "y"}


def test_answers_that_belong_to_no_question():
    # One id stands for several questions: a wrong match would move the scores.
    prompt = f"What brand?{SUFFIX}"
    with pytest.raises(ValueError, match="Answer 1: belongs to no question.*'a2'"):
        textvqa_answers([question()], [line(prompt, image_id="a2")])
    with pytest.raises(ValueError, match="Answer 2: occurs more often"):
        textvqa_answers([question()], [line(prompt), line(prompt)])
    with pytest.raises(ValueError, match="Answer 1: `prompt` must be a question"):
        textvqa_answers([question()], [line(f"What\nbrand\nis it?{SUFFIX}")])
    with pytest.raises(ValueError, match="a string under the key 'prompt'"):
        textvqa_answers([question()], [{"question_id": "a1", "text": "x"}])
    with pytest.raises(ValueError, match="1 of 2 that do not.*'9'"):
        score_textvqa([question()], {"1": "x", "9": "x"})


def test_the_last_of_two_annotations_counts_for_both():
    questions = [question("1"), question("2", "what brand?", people=["y"] * 10)]
    lines = [line(f"What brand?{SUFFIX}", text) for text in ("x", "y")]
    answers = textvqa_answers(questions, lines)
    assert answers == {"1": "x", "2": "y"}
    assert score_textvqa(questions, answers).scores == {"1": 0.0, "2": 1.0}


def test_nothing_to_score():
    # The published scorer divides by zero.
    with pytest.raises(ValueError, match="no answer to any of 1 questions"):
        score_textvqa([question()], {})
    with pytest.raises(TypeError, match="must be a string.*None"):
        score_textvqa([question()], {"1": None})


def write_files(folder, text):
    entry = case("textvqa", "normalisation_mix")["inputs"]["annotations"][0]
    annotations = folder / "val.json"
    annotations.write_text(json.dumps({"data": [entry]}))
    lines = [{"question_id": entry["image_id"], "image": "a1.jpg", "text": text}]
    return write_jsonl(folder / "questions.jsonl", lines), annotations


@pytest.mark.parametrize("ocr", ["\nReference OCR token: DAKOTA, 7", ""])
def test_files(tmp_path, ocr):
    text = f"what is the brand of this camera?{ocr}{SUFFIX}"
    (found,) = load_textvqa(*write_files(tmp_path, text), image_folder="images")
    assert textvqa_prompt(found) == f"<image>\n{text}"
    assert (found.id, found.image_id, found.answers[0]) == ("1", "a1", "dakota")
    assert found.image.replace("\\", "/") == "images/a1.jpg"


def test_invalid_files(tmp_path):
    questions, annotations = write_files(tmp_path, f"Another one?{SUFFIX}")
    with pytest.raises(ValueError, match="question 1: belongs to no question"):
        load_textvqa(questions, annotations)
    annotations.write_text("[]")
    with pytest.raises(ValueError, match="a list under 'data'"):
        load_textvqa(questions, annotations)
