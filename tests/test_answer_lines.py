"""Lines of answers: what the command did not write is refused, by line."""

import json

import pytest
from benchmark_folders import write_benchmark

from keras_betakd.data import ScienceQARecord
from keras_betakd.evaluation import run, score_scienceqa
from keras_betakd.evaluation.benchmarks.registry import BENCHMARKS
from keras_betakd.evaluation.journal import Answer
from keras_betakd.evaluation.llava_protocol import llava_answers

NUM = 2


@pytest.fixture(params=BENCHMARKS)
def benchmark(request, tmp_path):
    """A benchmark, its questions, and a line for each as the command writes it."""
    found = BENCHMARKS[request.param]
    questions = found.load(write_benchmark(request.param, tmp_path, NUM))
    lines = [
        {
            **found.line(question, "red"),
            "answer_id": question.id,
            "metadata": {"max_new_tokens": 4},
        }
        for question in questions
    ]
    return found, questions, lines


def test_lines_that_the_command_writes(benchmark):
    found, questions, lines = benchmark
    lines = json.loads(json.dumps(lines))
    answers = run.recorded_answers(lines, found, questions)
    assert answers == {question.id: Answer("red", 4) for question in questions}


NAN, INF = float("nan"), float("inf")
NO_LINE = {
    "no text": {"text": None},
    "a text that is a number": {"text": 3},
    "a text that is a list": {"text": ["red"]},
    "no id": {"answer_id": None},
    "an id that is a list": {"answer_id": ["a"]},
    "an id that is a number": {"answer_id": 7},
    "no prompt": {"prompt": None},
    "no metadata": {"metadata": None},
    "metadata that is a list": {"metadata": [4]},
    "no tokens": {"metadata": {}},
    **{
        f"{room!r} tokens": {"metadata": {"max_new_tokens": room}}
        for room in (INF, NAN, -INF, 0, -1, 4.0, True, "4", None, [4])
    },
}


@pytest.mark.parametrize("name", NO_LINE)
def test_lines_of_another_form(benchmark, name):
    """None became the answer "None"; inf tokens and a list as id were tracebacks."""
    found, questions, lines = benchmark
    lines[-1] = {**lines[-1], **NO_LINE[name]}
    message = f"Line {len(lines)} of answers.jsonl is none that this command writes"
    with pytest.raises(ValueError, match=message):
        run.recorded_answers(lines, found, questions)
    for key in ("answer_id", "prompt", "text", "metadata"):
        lines[-1] = {k: v for k, v in lines[0].items() if k != key}
        with pytest.raises(ValueError, match=message):
            run.recorded_answers(lines, found, questions)


def test_lines_of_other_questions(benchmark):
    """An unknown id without a prompt was taken, as neither has a prompt."""
    found, questions, lines = benchmark
    for change in (
        {"answer_id": "zzz"},
        {"prompt": "Why?"},
        {"question_id": "zzz"},
        {"question_id": None},
        {"question_id": True},
        {"question_id": [1]},
        {"question_id": float(NUM)},
    ):
        damaged = [*lines[:1], {**lines[1], **change}, *lines[2:]]
        with pytest.raises(ValueError, match="Line 2 .* as --data does not ask it"):
            run.recorded_answers(damaged, found, questions)
    line = {**lines[1], "answer_id": "zzz", "prompt": None}
    with pytest.raises(ValueError, match="Line 1 .* is none"):
        run.recorded_answers([line], found, questions)


@pytest.mark.parametrize("text", ["blue", "red"])
def test_two_lines_for_one_question(benchmark, text):
    """The second answer was scored, and both stayed in the file."""
    found, questions, lines = benchmark
    lines.append({**lines[1], "text": text})
    message = f"Line {len(lines)} of answers.jsonl answers question .* as line 2 does"
    with pytest.raises(ValueError, match=message):
        run.recorded_answers(lines, found, questions)


@pytest.mark.parametrize("key", ["question_id", "text"])
@pytest.mark.parametrize("value", [None, True, 3.0, ["a"], {}, INF])
def test_published_answer_files(key, value):
    lines = [{"question_id": 1, "text": "a"}, {"question_id": 2, "text": "a"}]
    lines[1][key] = value
    with pytest.raises(ValueError, match=f"Answer 2: needs a string .* '{key}'"):
        llava_answers(lines)


def test_answers_of_scienceqa_go_by_id_and_are_texts():
    records = [ScienceQARecord("7", "?", ("cat", "dog"), 1)]
    assert score_scienceqa(records, {7: "B"}).accuracy == 100.0
    with pytest.raises(ValueError, match="each id once"):
        score_scienceqa(records, {7: "B", "7": "A"})
    for text in (None, 1, ["B"]):
        with pytest.raises(TypeError, match="'7' must be a string"):
            score_scienceqa(records, {"7": text})
