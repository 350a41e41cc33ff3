"""GQA: the published numbers, and errors where the published scorer raises."""

import json

import pytest
from benchmark_golden import case, cases, percents, write_jsonl

from keras_betakd.evaluation.benchmarks.gqa import normalize_gqa_answer, score_gqa
from keras_betakd.evaluation.benchmarks.gqa_questions import (
    GQAQuestion,
    gqa_prompt,
    load_gqa,
)
from keras_betakd.evaluation.llava_protocol import llava_answers


def questions_of(inputs):
    return [
        GQAQuestion.from_annotation(name, fields)
        for name, fields in inputs["questions"].items()
    ]


def score(golden):
    inputs = golden["inputs"]
    answers = llava_answers(inputs["predictions"])
    consistency = inputs.get("consistency", False)
    return score_gqa(questions_of(inputs), answers, consistency=consistency)


def question(id="1", answer="yes", **fields):
    return GQAQuestion(id, "Is it red?", answer, **fields)


@pytest.mark.parametrize("golden", cases("gqa", "balanced_missing_raises"))
def test_published_scores(golden):
    found, expected = score(golden), golden["expected"]
    assert found.accuracy == pytest.approx(expected["accuracy"], abs=1e-6)
    assert found.binary.percent == pytest.approx(expected["binary"], abs=1e-6)
    assert found.open.percent == pytest.approx(expected["open"], abs=1e-6)
    assert found.distribution == pytest.approx(expected["distribution"], abs=1e-6)
    assert found.consistency == expected.get("consistency")
    for name in ("per_structural", "per_semantic", "per_steps", "per_length"):
        assert percents(getattr(found, name)) == {
            key: [pytest.approx(percent, abs=1e-6), n]
            for key, (percent, n) in expected[name].items()
        }


@pytest.mark.parametrize("golden", cases("gqa"))
def test_published_normalization_and_prompts(golden):
    converted = golden["expected"]["converted"]
    questions = {q.id: q for q in questions_of(golden["inputs"])}
    for line, expected in zip(golden["inputs"]["predictions"], converted, strict=True):
        assert normalize_gqa_answer(line["text"]) == expected["prediction"]
        assert (
            gqa_prompt(questions[line["question_id"]]) == f"<image>\n{line['prompt']}"
        )


def test_balanced_question_without_an_answer():
    # The published scorer raises a bare "missing predictions".
    with pytest.raises(ValueError, match=r"8 balanced questions, 7 of them.*'202'"):
        score(case("gqa", "balanced_missing_raises"))


def test_by_hand():
    # Right: 1 and 2 of 4. Colors are red, red and blue, predicted red, red and green:
    # (2 - 2)^2 / 2 + (0 - 1)^2 / 1 = 1. Animals: (0 - 1)^2 / 1 = 1, of one question.
    # (3 * 1 + 1 * 1) / 4 / 100 = 0.01.
    questions = [
        question("1", "red", structural="query", group="color"),
        question("2", "red", structural="query", group="color"),
        question("3", "blue", structural="query", group="color"),
        question("4", "cat", structural="choose", group="animal"),
    ]
    found = score_gqa(questions, {1: "Red", 2: "red..", 3: "green", 4: " cat", 9: "x"})
    assert (found.accuracy, found.n) == (50.0, 4)
    assert (found.open.correct, found.binary.correct) == (2, 0)
    assert found.distribution == pytest.approx(0.01)
    # Wilson, 2 of 4: center 0.5, half width 1.96 sqrt(1/16 + 0.96 / 16) / 1.96.
    assert found.interval == pytest.approx((15.0036, 84.9964), abs=1e-3)
    assert (found.unparsed, found.missing) == (0, 0)


def test_what_is_not_defined_is_no_number():
    found = score_gqa([question(), question("2", balanced=False)], {"1": " ."})
    assert found.open is None
    assert found.distribution is None
    assert found.consistency is None
    assert (found.unparsed, found.missing) == (1, 1)
    assert score_gqa([question()], {"1": "no"}, consistency=True).consistency is None
    with pytest.raises(ValueError, match="0 balanced questions"):
        score_gqa([question(balanced=False)], {"1": "yes"})


def test_consistency_needs_the_entailed_answers():
    questions = [question("1", entailed=("1", "2")), question("2", balanced=False)]
    with pytest.raises(ValueError, match="'1' entails '2'"):
        score_gqa(questions, {"1": "yes"}, consistency=True)
    answers = {"1": "yes", "2": "no"}
    assert score_gqa(questions, answers, consistency=True).consistency == 0.0


def test_of_two_answers_the_last_counts():
    lines = [{"question_id": 1, "text": text} for text in ("no", "yes")]
    assert score_gqa([question(1)], llava_answers(lines)).accuracy == 100.0


def test_wrong_input():
    with pytest.raises(TypeError, match="list"):
        score_gqa([question()], ["yes"])
    with pytest.raises(TypeError, match="question '1' must be a string.*None"):
        score_gqa([question()], {"1": None})
    with pytest.raises(ValueError, match="0 questions"):
        score_gqa([], {})
    with pytest.raises(ValueError, match="2 questions with 1 different"):
        score_gqa([question(1), question("1")], {})
    with pytest.raises(ValueError, match="2 answers with 1 different"):
        score_gqa([question()], {1: "yes", "1": "no"})
    with pytest.raises(ValueError, match="`answer` must be a string"):
        question(answer=None)
    with pytest.raises(ValueError, match="its entry must have.*KeyError: 'types'"):
        GQAQuestion.from_annotation("7", {"question": "?", "answer": "yes"})


def write_files(folder, **changes):
    entry = dict(case("gqa", "consistency")["inputs"]["questions"]["204"])
    text = f"{entry['question']}\nAnswer the question using a single word or phrase."
    line = {"question_id": "204", "image": "n1.jpg", "text": text, **changes}
    annotations = folder / "questions.json"
    annotations.write_text(json.dumps({"204": entry, "205": entry}))
    return write_jsonl(folder / "questions.jsonl", [line]), annotations


def test_files(tmp_path):
    (found,) = load_gqa(*write_files(tmp_path), image_folder="images")
    assert (found.id, found.answer, found.structural) == ("204", "left", "choose")
    assert found.question == "Is the dog left or right?"
    assert found.image.replace("\\", "/") == "images/n1.jpg"


def test_invalid_files(tmp_path):
    with pytest.raises(ValueError, match="question_id='7', which has none"):
        load_gqa(*write_files(tmp_path, question_id=7))
    with pytest.raises(ValueError, match="question 1: `text` must end with"):
        load_gqa(*write_files(tmp_path, text="Left or right?"))
    with pytest.raises(ValueError, match="question 1: needs a string under.*'image'"):
        load_gqa(*write_files(tmp_path, image=None))
    lines, annotations = write_files(tmp_path)
    lines.write_text("{}\n\n[1]\n")
    with pytest.raises(ValueError, match="line 3: must be a JSON object"):
        load_gqa(lines, annotations)
    annotations.write_text("{")
    with pytest.raises(ValueError, match="Not a JSON file"):
        load_gqa(lines, annotations)
