"""POPE: the published parser and scores, paired by id instead of by place."""

import pytest
from benchmark_golden import case, cases, write_jsonl

from keras_betakd.evaluation.benchmarks.pope import POPECategory, parse_pope, score_pope
from keras_betakd.evaluation.benchmarks.pope_questions import (
    POPEQuestion,
    load_pope,
    pope_prompt,
)
from keras_betakd.evaluation.llava_protocol import llava_answers


def load(golden, folder):
    inputs = golden["inputs"]
    for category, labels in inputs["labels"].items():
        write_jsonl(folder / f"coco_pope_{category}.json", labels)
    return load_pope(write_jsonl(folder / "pope.jsonl", inputs["questions"]), folder)


def answers_of(golden):
    return llava_answers(golden["inputs"]["predictions"], unique=True)


def question(id="1", category="random", label="yes"):
    return POPEQuestion(id, "Is there a dog in the image?", category, label)


@pytest.mark.parametrize("golden", cases("pope", "no_positive_prediction"))
def test_published_scores(golden, tmp_path):
    found = score_pope(load(golden, tmp_path), answers_of(golden))
    expected = golden["expected"]
    assert found.mean_f1 == pytest.approx(expected["mean_f1_percent"], abs=1e-6)
    assert set(found.per_category) == set(expected["per_category"])
    for name, counts in found.per_category.items():
        values = expected["per_category"][name]
        assert counts.n == values["n"]
        for key in ("TP", "FP", "TN", "FN"):
            assert getattr(counts, key.lower()) == values[key]
        for key in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
            assert getattr(counts, key) == pytest.approx(100 * values[key], abs=1e-6)


@pytest.mark.parametrize("golden", cases("pope"))
def test_published_parsing_and_prompts(golden, tmp_path):
    answers = answers_of(golden)
    questions = load(golden, tmp_path)
    for name, expected in golden["expected"]["per_category"].items():
        texts = [answers[q.id] for q in questions if q.category == name]
        assert [parse_pope(text) for text in texts] == expected["parsed"]
    prompts = [pope_prompt(q).removeprefix("<image>\n") for q in questions]
    assert prompts == [p["prompt"] for p in golden["inputs"]["predictions"]]


def test_undefined_f1(tmp_path):
    # The published scorer divides by zero.
    golden = case("pope", "no_positive_prediction")
    with pytest.raises(ValueError, match="'random' is not defined.*TP=0, FP=0, TN=1"):
        score_pope(load(golden, tmp_path), answers_of(golden))


@pytest.mark.parametrize("counts", [(0, 2, 1, 1), (0, 1, 1, 0), (0, 0, 1, 1)])
def test_no_right_yes_is_no_f1(counts):
    # Precision and recall of 0: their harmonic mean is divided by zero, too.
    with pytest.raises(ValueError, match="at least one answer"):
        POPECategory(*counts)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("No", "no"),
        ("no, sorry", "no"),
        ("There is not", "no"),
        ("Yes! no", "no"),
        ("Yes. no", "yes"),
        ("NO", "yes"),
        ("Nope", "yes"),
        ("Not at all", "yes"),
        ("None", "yes"),
        ("No!", "yes"),
        ("No,there is", "yes"),
        ("I cannot see one", "yes"),
        ("\nno", "yes"),
        ("", "yes"),
    ],
)
def test_traps_of_the_parser(text, expected):
    assert parse_pope(text) == expected


def test_by_hand():
    # TP 2, FN 1, FP 1, TN 1: precision 2/3, recall 2/3, F1 2/3 = 4 / (4 + 1 + 1).
    labels = ("yes", "yes", "yes", "no", "no")
    texts = ("yes", "Sure", "no", "Yes", "No")
    questions, answers = [], {}
    for category in ("random", "popular", "adversarial"):
        for number, (label, text) in enumerate(zip(labels, texts, strict=True)):
            questions.append(question(f"{category}{number}", category, label))
            answers[f"{category}{number}"] = text
    found = score_pope(questions, answers)
    assert found.mean_f1 == pytest.approx(100 * 2 / 3)
    assert (found.n, found.unparsed, found.missing) == (15, 3, 0)
    # Wilson for J = 2 of 4 is 0.150036..0.849964; F1 = 2 J / (1 + J).
    expected = (100 * 0.300072 / 1.150036, 100 * 1.699928 / 1.849964)
    assert found.interval == pytest.approx(expected, abs=1e-3)


def test_the_mean_is_one_of_three_categories():
    found = score_pope([question()], {"1": "yes"})
    assert found.per_category["random"].f1 == 100.0
    assert (found.mean_f1, found.interval) == (None, None)


def test_answers_that_would_shift_the_others():
    # The published scorer pairs by place: a dropped answer moved all that followed.
    questions = [question("1"), question("2")]
    with pytest.raises(ValueError, match=r"1 answers to 2 questions.*\['2'\]"):
        score_pope(questions, {"1": "yes"})
    with pytest.raises(ValueError, match="1 of 3 that do not.*'9'"):
        score_pope(questions, {1: "yes", 2: "yes", 9: "no"})
    lines = [{"question_id": 1, "text": "yes"}] * 2
    with pytest.raises(ValueError, match="Answer 2: question '1' was answered before"):
        llava_answers(lines, unique=True)
    with pytest.raises(TypeError, match="must be a string.*None"):
        score_pope([question()], {"1": None})


def test_the_order_of_the_answers_does_not_matter(tmp_path):
    golden = case("pope", "parsing_mix")
    turned = dict(reversed(answers_of(golden).items()))
    expected = pytest.approx(golden["expected"]["mean_f1_percent"])
    assert score_pope(load(golden, tmp_path), turned).mean_f1 == expected


def test_label_files_of_another_version(tmp_path):
    # Today's files have 3,000 lines in the random set where LLaVA asks 2,910.
    golden = case("pope", "no_positive_prediction")
    load(golden, tmp_path)
    path = tmp_path / "coco_pope_random.json"
    labels = golden["inputs"]["labels"]["random"]
    write_jsonl(path, labels + labels[:1])
    with pytest.raises(ValueError, match="2 questions, 3 labels.*e3e39262"):
        load_pope(tmp_path / "pope.jsonl", tmp_path)
    write_jsonl(path, labels[::-1])
    with pytest.raises(ValueError, match="Question '0' .random. is .*e3e39262"):
        load_pope(tmp_path / "pope.jsonl", tmp_path)
    with pytest.raises(ValueError, match="`category` must be one of"):
        question(category="easy")
