"""MME: the published parser and points, paired by image instead of by line."""

import pytest
from benchmark_golden import case, cases

from keras_betakd.evaluation.benchmarks.mme import MMETask, parse_mme, score_mme
from keras_betakd.evaluation.benchmarks.mme_questions import (
    MME_COGNITION,
    MME_PERCEPTION,
    MMEQuestion,
    load_mme,
    mme_answers,
    mme_prompt,
)

APART = ("artwork", "celebrity", "landmark", "posters", "scene")


def write_folder(folder, tasks):
    """MME's folder: five of its tasks have their images and texts apart."""
    for task, files in tasks.items():
        apart = task in APART
        texts = folder / task / "questions_answers_YN" if apart else folder / task
        images = folder / task / "images" if apart else folder / task
        for path in (texts, images):
            path.mkdir(parents=True, exist_ok=True)
        for name, lines in files.items():
            text = "".join(f"{question}\t{answer}\n" for question, answer in lines)
            (texts / name).write_text(text)
            (images / name.replace(".txt", ".jpg")).write_bytes(b"")
    return folder


def load(golden, folder):
    return load_mme(write_folder(folder, golden["inputs"]["gt"]))


def score(golden, folder):
    questions = load(golden, folder)
    return score_mme(questions, mme_answers(questions, golden["inputs"]["predictions"]))


def pair(task="OCR", file="1"):
    return [
        MMEQuestion(f"{task}/{file}#1", "Is it a 7?", task, file, "yes"),
        MMEQuestion(f"{task}/{file}#2", "Is it an 8?", task, file, "no"),
    ]


def answers(*texts, task="OCR", file="1"):
    return {f"{task}/{file}#{k}": text for k, text in enumerate(texts, 1)}


@pytest.mark.parametrize("golden", cases("mme", "odd_number_of_lines_raises"))
def test_published_scores(golden, tmp_path):
    found, expected = score(golden, tmp_path), golden["expected"]
    assert found.perception == pytest.approx(expected["perception"], abs=1e-6)
    assert found.cognition == pytest.approx(expected["cognition"], abs=1e-6)
    scores = {task: values.score for task, values in found.per_task.items()}
    assert scores == pytest.approx(expected["task_scores"], abs=1e-6)
    for task, words in expected["parsed"].items():
        parsed = [w for name, w in found.parsed.items() if name.startswith(f"{task}/")]
        assert parsed == words


@pytest.mark.parametrize("golden", cases("mme", "odd_number_of_lines_raises"))
def test_published_prompts(golden, tmp_path):
    prompts = {mme_prompt(question) for question in load(golden, tmp_path)}
    logged = {f"<image>\n{line['prompt']}" for line in golden["inputs"]["predictions"]}
    assert prompts == logged


def test_one_answer_about_an_image(tmp_path):
    # The published scorer pairs lines: one too few shifts all that follow, and it
    # notices only where their number is odd.
    with pytest.raises(ValueError, match=r"2 questions about 'color/0001'.*#1'\]"):
        score(case("mme", "odd_number_of_lines_raises"), tmp_path)
    questions = pair(file="1") + pair(file="2")
    halves = {"OCR/1#1": "yes", "OCR/2#2": "no"}
    with pytest.raises(ValueError, match="an answer to both or to none"):
        score_mme(questions, halves)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Yes", "yes"),
        ("YES, it is", "yes"),
        (" yes", "yes"),
        ("ayes", "yes"),
        ("No.", "no"),
        ("not sure", "no"),
        ("know it: yes", "no"),
        ("none", "no"),
        ("nope", "no"),
        ("noyes", "no"),
        ("N", "other"),
        ("Y e s", "other"),
        ("I say no", "other"),
        ("", "other"),
        ("\tno\n", "no"),
    ],
)
def test_traps_of_the_parser(text, expected):
    assert parse_mme(text) == expected


def test_by_hand():
    # Images: both right, one right, none. acc = 3/6, acc+ = 1/3: 50 + 33.33.
    task = MMETask(right=(2, 1, 0))
    assert task.score == pytest.approx(50 + 100 / 3)
    # Image by image 200, 50, 0: mean 83.33, s^2 = 10833.33, error s / sqrt(3).
    assert task.standard_error == pytest.approx((10833.3333 / 3) ** 0.5, abs=1e-3)
    tasks = {name: pair(name, "1") + pair(name, "2") for name in MME_PERCEPTION}
    given = {}
    for name in tasks:
        given |= answers("yes", "no", task=name, file="1")
        given |= answers("yes", "maybe", task=name, file="2")
    found = score_mme(sum(tasks.values(), []), given)
    # Each task: acc 3/4, acc+ 1/2: 125. Images 200 and 50: error 75, ten of them.
    assert (found.perception, found.cognition) == (pytest.approx(1250.0), None)
    assert (found.n, found.unparsed, found.missing) == (40, 10, 0)
    half = 1.959964 * 75 * 10**0.5
    assert found.interval == pytest.approx((1250 - half, 1250 + half), abs=1e-2)
    assert found.cognition_interval is None


def test_a_single_image_has_no_interval():
    tasks = MME_COGNITION
    given = {}
    for task in tasks:
        given |= answers("yes", "yes", task=task)
    found = score_mme([q for task in tasks for q in pair(task)], given)
    assert (found.cognition, found.cognition_interval) == (200.0, None)


def test_images_without_answers_are_left_out_and_counted():
    found = score_mme(pair(file="1") + pair(file="2"), answers("yes", "no"))
    assert (found.per_task["OCR"].score, found.missing, found.n) == (200.0, 2, 2)
    # A task without a file stops the published scorer.
    with pytest.raises(ValueError, match=r"no answer in \['count'\]"):
        score_mme(pair() + pair("count"), answers("yes", "no"))


def test_answers_that_belong_to_no_question():
    line = {"question_id": "OCR/1.png", "prompt": "Is it a 7?", "text": "Yes"}
    question = MMEQuestion(
        "OCR/1#1", "Is it a 7? Please answer yes or no.", "OCR", 1, "Yes"
    )
    with pytest.raises(ValueError, match="Answer 1: belongs to no question"):
        mme_answers(pair(), [line])
    with pytest.raises(ValueError, match="Answer 1: belongs to no question"):
        mme_answers([question], [line | {"question_id": "OCR/2.png"}])
    with pytest.raises(ValueError, match="Answer 2: occurs more often"):
        mme_answers([question], [line, line])
    with pytest.raises(ValueError, match="1 of 1 that do not"):
        score_mme(pair(), answers("yes", task="count"))
    with pytest.raises(TypeError, match="must be a string.*None"):
        score_mme(pair(), answers(None, "no"))


def test_wrong_questions():
    with pytest.raises(ValueError, match="`task` must be one of"):
        MMEQuestion("1", "?", "colour", "1", "yes")
    with pytest.raises(ValueError, match="`answer` must be 'yes' or 'no'"):
        MMEQuestion("1", "?", "color", "1", "maybe")
    with pytest.raises(ValueError, match="1 questions about 'OCR/1'"):
        score_mme(pair()[:1], answers("yes"))
    with pytest.raises(ValueError, match="at least one image"):
        MMETask(right=())


def test_invalid_folders(tmp_path):
    lines = [["Is it? Please answer yes or no.", "Yes"]]
    write_folder(tmp_path, {"OCR": {"1.txt": lines}, "count": {}})
    with pytest.raises(ValueError, match="must hold two lines"):
        load_mme(tmp_path, ["OCR"])
    with pytest.raises(FileNotFoundError, match="a text file for each image"):
        load_mme(tmp_path, ["count"])
    (tmp_path / "OCR" / "1.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="no image to the questions"):
        load_mme(tmp_path, ["OCR"])
    with pytest.raises(FileNotFoundError):
        load_mme(tmp_path, ["scene"])
