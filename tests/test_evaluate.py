"""The command that lets a model answer a benchmark and scores it."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib

import keras
import numpy as np
import pytest
from benchmark_folders import RIGHT, write_benchmark
from benchmark_golden import GOLDEN, write_jsonl
from tiny_families import FAMILIES
from tiny_models import tiny_gemma3, tiny_gemma_text

from keras_betakd.data import load_image
from keras_betakd.evaluate import main
from keras_betakd.evaluation import MMBenchQuestion, generate_answers, read_jsonl, run
from keras_betakd.evaluation.benchmarks.registry import BENCHMARKS

NUM = 4
# The best score, and out of how many: of ScienceQA those with an image, of MME those
# of perception, of MMBench without the rotations.
BEST = {
    "scienceqa": (100.0, 2),
    "gqa": (100.0, 4),
    "textvqa": (100.0, 4),
    "pope": (100.0, 12),
    "mme": (2000.0, 80),
    "mmbench": (100.0, 4),
}


def saved(model, folder):
    """A preset of a model whose answers depend on the whole prompt."""
    rng = np.random.default_rng(0)
    for weight in model.backbone.weights:
        if weight.dtype == "float32":
            weight.assign(rng.normal(0, 0.4, weight.shape))
    model.save_to_preset(folder)
    return folder


@pytest.fixture(scope="session")
def student(tmp_path_factory):
    model = tiny_gemma3(width=16, sequence_length=320)
    return saved(model, tmp_path_factory.mktemp("presets") / "student")


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    return {name: write_benchmark(name, folder / name, NUM) for name in BENCHMARKS}


def arguments(name, data, model, output, *more):
    return [
        *("--model", str(model), "--benchmark", name, "--data", str(data)),
        *("--output", str(output), "--max-new-tokens", "4", *map(str, more)),
    ]


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def official(report):
    return report["scores"][report["official"]]


@pytest.fixture
def told(monkeypatch, data):
    """Returns a function that replaces generation by the right answers.

    It returns the ids it was prompted with, and stops like Ctrl-C after `stop_after`.
    """

    def make(name, tell=None, stop_after=None):
        questions = BENCHMARKS[name].load(data[name])
        answers = {q.id: (tell or RIGHT[name])(q) for q in questions}
        prompted = []

        def decode(model, prompts, *args, **kwargs):
            for prompt in prompts:
                if len(prompted) == stop_after:
                    raise KeyboardInterrupt
                prompted.append(prompt.id)
                yield [(prompt, answers[prompt.id])]

        keras.utils.set_random_seed(0)  # a run goes on with the same model only
        model = tiny_gemma3(sequence_length=320)
        monkeypatch.setattr(run, "load_model", lambda preset, **options: model)
        monkeypatch.setattr(run, "answered_groups", decode)
        return prompted

    return make


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_model_is_prompted_and_scored(name, data, student, tmp_path, capsys):
    assert main(arguments(name, data[name], student, tmp_path, "--limit", 2)) == 0
    benchmark, report = BENCHMARKS[name], report_of(tmp_path)
    every = benchmark.load(data[name])
    chosen = benchmark.first(every, 2)
    # What is written reads as any LLaVA answer file, and has the same score.
    lines = read_jsonl(tmp_path / "answers.jsonl")
    answers = benchmark.answers(every, lines)
    assert set(answers) == {question.id for question in chosen}
    expected = json.loads(json.dumps(benchmark.scores(chosen, answers)))
    assert {key: report[key] for key in expected} == expected
    assert report["prompt_format"] == benchmark.prompt_format_of(chosen)
    assert all(line["model_id"] == str(student) for line in lines)
    printed = capsys.readouterr().out
    assert f"{len(chosen)} questions, {len(chosen)} to be answered" in printed
    assert f"{report['official']} *" in printed


@pytest.mark.parametrize("name", BENCHMARKS)
def test_right_answers_get_the_best_score(name, data, told, tmp_path):
    told(name)
    assert main(arguments(name, data[name], "any", tmp_path)) == 0
    found = official(report_of(tmp_path))
    assert (found["value"], found["n"]) == BEST[name]
    assert (found["unparsed"], found["missing"]) == (0, 0)


@pytest.mark.parametrize("family", ["Gemma3", "PaliGemma", "MobileVLM"])
def test_the_answers_are_those_of_the_model(data, family, tmp_path):
    """Holds whether a family's batches are answered one by one or together."""
    preset = saved(FAMILIES[family](width=16, sequence_length=160), tmp_path / family)
    args = arguments("gqa", data["gqa"], preset, tmp_path / "out", "--batch-size", 2)
    assert main(args) == 0
    lines = read_jsonl(tmp_path / "out" / "answers.jsonl")
    model = run.load_model(preset)
    questions = BENCHMARKS["gqa"].load(data["gqa"])
    batch = {
        "ids": [question.id for question in questions],
        "prompts": ["<image>\n" + line["prompt"] for line in lines],
        "images": [[load_image(question.image)] for question in questions],
    }
    found = generate_answers(model, batch, 1, max_new_tokens=4, progress=False)
    assert found == {line["question_id"]: line["text"] for line in lines}


def test_lines_are_the_published_ones():
    (golden,) = (c for c in GOLDEN["prompts"] if c["name"] == "mmbench_questions")
    for row, expected in zip(golden["inputs"]["rows"], golden["expected"], strict=True):
        question = MMBenchQuestion.from_row(row)
        line = BENCHMARKS["mmbench"].line(question, "A")
        assert line["question_id"] == expected["index"]
        assert line["prompt"] == expected["logged_prompt"]
        assert line["options"] == expected["options"]
        assert line["option_char"] == list("ABCD")[: len(expected["options"])]


def test_limits_keep_together_what_is_scored_together(data):
    def first(name, limit):
        questions = BENCHMARKS[name].load(data[name])
        return [q.id for q in BENCHMARKS[name].first(questions, limit)]

    assert first("gqa", 3) == ["200", "201", "202"]
    assert first("mmbench", 2) == ["0", "1", "1000000", "1000001"]
    assert first("pope", 1) == ["0", "4", "8"]
    assert len(first("mme", 1)) == 28
    assert first("mme", 1)[:3] == [
        "existence/0000#1",
        "existence/0000#2",
        "count/0000#1",
    ]
    assert len(first("scienceqa", 99)) == NUM


def command(*args):
    return subprocess.Popen(
        [sys.executable, "-m", "keras_betakd.evaluate", *args],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "KERAS_BACKEND": keras.config.backend()},
    )


def count_lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_killed_in_the_middle_and_started_again(student, tmp_path, capsys):
    num = 30
    folder = write_benchmark("gqa", tmp_path / "data", num)
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    args = arguments("gqa", folder, student, broken, "--batch-size", 1)
    process = command(*args)
    while process.poll() is None and not count_lines(broken / "answers.jsonl"):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    message = process.communicate()[1].decode()
    assert process.returncode == -signal.SIGKILL, message
    done = count_lines(broken / "answers.jsonl")
    assert 0 < done < num
    assert not (broken / "report.json").exists()

    assert main(args) == 0
    assert f"{num} questions, {num - done} to be answered" in capsys.readouterr().out
    # In another batch size, too: no answer depends on it.
    assert main(arguments("gqa", folder, student, whole, "--batch-size", 16)) == 0
    assert report_of(broken) == report_of(whole)


GROUPED = {
    # Prompts of one length wait for each other: 0 and 3, 1 and 4, 2 and 5.
    "PaliGemma": 6,
    # Two by two; one family is patched while it answers, the other has no cache.
    "Gemma3n": 8,
    "Qwen3_5": 8,
}


@pytest.mark.parametrize("family", GROUPED)
def test_each_group_is_kept_as_soon_as_it_is_answered(family, tmp_path, capsys):
    """A kill once cost up to 16 batches where batches are answered together."""
    done, last = GROUPED[family], "n8.jpg"
    preset = saved(FAMILIES[family](width=16, sequence_length=160), tmp_path / family)
    folder = write_benchmark("gqa", tmp_path / "data", 9)
    intact = (folder / "images" / last).read_bytes()
    (folder / "images" / last).write_bytes(b"broken")

    def arguments_of(output, batch_size):
        more = "--batch-size", batch_size
        return arguments("gqa", folder, preset, tmp_path / output, *more)

    assert main(arguments_of("broken", 2)) == 2
    path = tmp_path / "broken" / "answers.jsonl"
    kept = {line["answer_id"]: line for line in read_jsonl(path)}
    assert sorted(kept) == [str(200 + k) for k in range(done)]
    (folder / "images" / last).write_bytes(intact)
    capsys.readouterr()
    assert main(arguments_of("broken", 2)) == 0
    printed = capsys.readouterr().out
    assert f"9 questions, {9 - done} to be answered" in printed
    assert f"{9 - done}/{9 - done}" in printed
    lines = read_jsonl(path)
    assert [line["answer_id"] for line in lines] == [str(200 + k) for k in range(9)]
    assert [lines[k] for k in range(done)] == [kept[str(200 + k)] for k in range(done)]
    assert main(arguments_of("whole", 4)) == 0
    assert report_of(tmp_path / "broken") == report_of(tmp_path / "whole")


def test_half_a_line_is_dropped_and_answered_again(data, told, tmp_path, capsys):
    prompted = told("gqa")
    args = arguments("gqa", data["gqa"], "any", tmp_path)
    assert main(args) == 0
    report, path = report_of(tmp_path), tmp_path / "answers.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    del prompted[:]
    assert main(args) == 0
    assert prompted == ["203"]
    assert "ended in half a line" in capsys.readouterr().out
    assert report_of(tmp_path) == report
    del prompted[:]
    assert main(args) == 0
    assert not prompted


def test_ctrl_c_keeps_what_is_answered(data, told, tmp_path, capsys):
    args = arguments("pope", data["pope"], "any", tmp_path, "--batch-size", 2)
    told("pope", stop_after=6)
    assert main(args) == 130
    assert "goes on from there" in capsys.readouterr().err
    assert count_lines(tmp_path / "answers.jsonl") == 6
    prompted = told("pope")
    assert main(args) == 0
    assert len(prompted) == 6


def test_more_questions_in_the_same_folder(data, told, tmp_path):
    prompted = told("mmbench")
    args = arguments("mmbench", data["mmbench"], "any", tmp_path)
    assert main([*args, "--limit", "1"]) == 0
    assert prompted == ["0", "1000000"]
    assert main(args) == 0
    assert len(prompted) == 8
    assert main([*args, "--limit", "3"]) == 0
    assert len(prompted) == 8
    assert official(report_of(tmp_path))["n"] == 3
    # In the questions' order, which the published scorers of POPE and MME rely on.
    lines = read_jsonl(tmp_path / "answers.jsonl")
    every = BENCHMARKS["mmbench"].load(data["mmbench"])
    assert [line["answer_id"] for line in lines] == [q.id for q in every]


@pytest.mark.parametrize(
    "changed, message",
    [
        (["--max-new-tokens", "5"], "max_new_tokens was 4 and is now 5"),
        (["--model", "other"], "model was 'any' and is now 'other'"),
        (["--dtype", "bfloat16"], "dtype was None and is now 'bfloat16'"),
    ],
)
def test_answers_of_another_run(data, told, tmp_path, capsys, changed, message):
    told("gqa")
    args = arguments("gqa", data["gqa"], "any", tmp_path)
    assert main(args) == 0
    assert main([*args, *changed]) == 2
    error = capsys.readouterr().err
    assert message in error and "Give another --output" in error


def test_a_preset_that_was_trained_again(data, told, tmp_path, capsys):
    """The answers of an earlier model at the same path are not reused."""
    told("gqa")
    preset = tmp_path / "preset"
    preset.mkdir()
    (preset / "metadata.json").write_text('{"date_saved": "today"}')
    args = arguments("gqa", data["gqa"], preset, tmp_path / "out")
    assert main(args) == 0
    (preset / "metadata.json").write_text('{"date_saved": "tomorrow"}')
    assert main(args) == 2
    assert "model_files: metadata.json was" in capsys.readouterr().err


def test_answers_that_do_not_belong_here(data, told, tmp_path, capsys):
    told("gqa")
    args = arguments("gqa", data["gqa"], "any", tmp_path)
    assert main(args) == 0
    path = tmp_path / "answers.jsonl"
    lines = read_jsonl(path)
    for line, message in (
        ({**lines[0], "prompt": "Why?"}, "as --data does not ask it"),
        ({**lines[0], "answer_id": "7"}, "answers question '7'"),
        ({"question_id": 7}, "Line 5 of answers.jsonl is none"),
    ):
        write_jsonl(path, [*lines, line])
        assert main(args) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "run.json").unlink()
    assert main(args) == 2
    assert "no run.json" in capsys.readouterr().err
    (tmp_path / "run.json").write_text("{")
    assert main(args) == 2
    assert "Not a JSON file" in capsys.readouterr().err


MISSING = {
    "scienceqa": "problems.json",
    "gqa": "testdev_balanced_questions.json",
    "textvqa": "train_images/a1.jpg",
    "pope": "coco/coco_pope_popular.json",
    "mme": "MME_Benchmark_release_version/OCR",
    "mmbench": "mmbench_dev_20230712.tsv",
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_missing_files_are_found_before_the_model_is_loaded(
    name, data, tmp_path, capsys
):
    folder = tmp_path / "data"
    shutil.copytree(data[name], folder)
    path = folder / MISSING[name]
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert main(arguments(name, folder, "no such preset", tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert path.name in error or "There must be one mmbench_dev" in error
    for wrong in (tmp_path / "no", data["gqa"] / "images" / "n1.jpg"):
        assert main(arguments(name, wrong, "none", tmp_path / "out")) == 2
        error = capsys.readouterr().err
        assert "--data must be a folder" in error and BENCHMARKS[name].files in error


def test_what_a_person_can_put_right(data, student, tmp_path, capsys):
    def error(model, *more):
        args = arguments("gqa", data["gqa"], model, tmp_path / "out", *more)
        assert main(args) == 2
        return capsys.readouterr().err

    assert "There is no preset folder" in error(tmp_path / "nothing")
    message = error(student, "--sequence-length", 50)
    assert (
        "Record '202': its prompt has 59 tokens" in message
        and "greater --sequence-length" in message
    )
    assert "cannot be loaded" in error(student, "--dtype", "float7")
    text_model = saved(tiny_gemma_text(), tmp_path / "text")
    assert "takes no images" in error(text_model)


@pytest.mark.parametrize(
    "more, message",
    [
        (["--limit", "0"], "--limit: must be 1, 2, 3, ... Received: '0'"),
        (["--batch-size", "two"], "--batch-size: must be 1, 2, 3, ... Received: 'two'"),
        (["--benchmark", "vizwiz"], "invalid choice: 'vizwiz'"),
    ],
)
def test_wrong_arguments(tmp_path, capsys, more, message):
    with pytest.raises(SystemExit) as stopped:
        main([*arguments("gqa", tmp_path, "any", tmp_path), *more])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_damaged_image(data, student, tmp_path, capsys):
    folder = tmp_path / "data"
    shutil.copytree(data["gqa"], folder)
    (folder / "images" / "n2.jpg").write_bytes(b"broken")
    args = arguments("gqa", folder, student, tmp_path / "out", "--batch-size", 1)
    assert main(args) == 2
    assert "Record '202': Could not read this image" in capsys.readouterr().err
    # What came before is kept.
    shutil.copy(data["gqa"] / "images" / "n2.jpg", folder / "images")
    assert count_lines(tmp_path / "out" / "answers.jsonl") == 2
    assert main(args) == 0


def test_no_questions_or_the_same_twice(data, tmp_path, capsys):
    folder = tmp_path / "gqa"
    shutil.copytree(data["gqa"], folder)
    path = folder / "llava_gqa_testdev_balanced.jsonl"
    lines = read_jsonl(path)
    for found, message in (
        ([], f"'{path}' holds no questions"),
        (lines * 2, "has the id '200'"),
    ):
        path.write_text("\n".join(map(json.dumps, found)))
        assert main(arguments("gqa", folder, "any", tmp_path / "out")) == 2
        assert message in capsys.readouterr().err


def test_an_output_that_is_a_file(data, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        assert main(arguments("gqa", data["gqa"], "any", output)) == 2
        assert "--output must be a folder" in capsys.readouterr().err


def test_two_versions_of_a_benchmark(data, tmp_path, capsys):
    folder = tmp_path / "mmbench"
    shutil.copytree(data["mmbench"], folder)
    table = folder / "mmbench_dev_20230712.tsv"
    shutil.copy(table, folder / "mmbench_dev_en_20231003.tsv")
    assert main(arguments("mmbench", folder, "any", tmp_path / "out")) == 2
    assert "There must be one mmbench_dev_*.tsv" in capsys.readouterr().err


def test_answers_without_a_score(data, told, tmp_path, capsys):
    """POPE's F1 is undefined if there is no true positive."""
    told("pope", tell=lambda question: "no")
    args = arguments("pope", data["pope"], "any", tmp_path)
    assert main(args) == 1
    assert "complete, but has no score" in capsys.readouterr().err


def test_answers_that_the_sequence_cuts_short(data, student, tmp_path, capsys):
    def run(output, *more):
        args = arguments("gqa", data["gqa"], student, tmp_path / output, *more)
        assert main(args) == 0
        lines = read_jsonl(tmp_path / output / "answers.jsonl")
        return lines, report_of(tmp_path / output)["new_tokens"]

    _, found = run("long", "--max-new-tokens", 99, "--sequence-length", 70)
    prompt = 70 - found["least"]
    cut, found = run("cut", "--max-new-tokens", 99, "--sequence-length", prompt + 3)
    assert found == {"most": 99, "least": 3, "limited_questions": NUM}
    assert "a --sequence-length greater by 96 leaves" in capsys.readouterr().out
    # Each answer is as long as its own room.
    rooms = [line["metadata"]["max_new_tokens"] for line in cut]
    assert min(rooms) == 3 < max(rooms)
    short, found = run("short", "--max-new-tokens", 3)
    assert found["limited_questions"] == 0
    texts = [line["text"] for line in short]
    assert texts[rooms.index(3)] == cut[rooms.index(3)]["text"]
    pairs = zip(cut, texts, strict=True)
    assert all(line["text"].startswith(text) for line, text in pairs)


def test_agreement_with_a_teacher(data, told, tmp_path, capsys):
    told("scienceqa", tell=lambda question: "B")
    teacher = tmp_path / "teacher"
    assert main(arguments("scienceqa", data["scienceqa"], "any", teacher)) == 0
    args = arguments("scienceqa", data["scienceqa"], "any", tmp_path / "student")
    assert main([*args, "--teacher-answers", str(teacher / "answers.jsonl")]) == 0
    found = report_of(tmp_path / "student")["agreement"]
    assert found["same answer"]["value"] == 100.0
    assert found["repeats the teacher's wrong answer"]["value"] == 100.0
    assert "agreement with the teacher" in capsys.readouterr().out
    other = tmp_path / "other.jsonl"
    write_jsonl(other, [{"question_id": "x", "text": "B"}])
    assert main([*args, "--teacher-answers", str(other)]) == 2
    assert "no answer to any of the 4 questions" in capsys.readouterr().err
    assert main([*args, "--teacher-answers", str(tmp_path / "none.jsonl")]) == 2
    assert main([*args, "--teacher-answers", str(teacher)]) == 2
    assert "must be a file, for example the answers.jsonl" in capsys.readouterr().err
    # Which file it was that is no text, or damaged, was not said.
    other.write_bytes(b"\xff\xd8")
    capsys.readouterr()
    assert main([*args, "--teacher-answers", str(other)]) == 2
    assert "Not a text file in UTF-8: " in capsys.readouterr().err
    write_jsonl(other, [{"question_id": "1"}])
    assert main([*args, "--teacher-answers", str(other)]) == 2
    assert f"error: '{other}': Answer 1: needs a string" in capsys.readouterr().err


@pytest.mark.parametrize("name", BENCHMARKS)
def test_outcomes_of_right_and_unreadable_answers(name, data):
    benchmark = BENCHMARKS[name]
    questions = benchmark.load(data[name])
    right = {question.id: RIGHT[name](question) for question in questions}
    for question in questions:
        found = benchmark.outcomes(questions, right)[question.id]
        assert found.right
        assert found.answer == benchmark.expected(question)
    silent = benchmark.outcomes(questions, dict.fromkeys(right, ""))
    assert {found.answer for found in silent.values()} == (
        {"yes"} if name == "pope" else {None}
    )


def test_help_names_the_files(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    for benchmark in BENCHMARKS.values():
        assert benchmark.files in printed
    assert "130 after Ctrl-C" in printed


def test_the_console_script_is_the_same_command(tmp_path, monkeypatch, capsys):
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    with open(os.path.join(root, "pyproject.toml"), "rb") as file:
        scripts = tomllib.load(file)["project"]["scripts"]
    script = "keras-betakd-evaluate"
    module, function = scripts[script].split(":")
    command = getattr(importlib.import_module(module), function)
    for program, name in (
        (f"/usr/bin/{script}", script),
        ("/lib/keras_betakd/evaluate.py", "python -m keras_betakd.evaluate"),
    ):
        monkeypatch.setattr(sys, "argv", [program, "--help"])
        with pytest.raises(SystemExit) as stopped:
            command()
        assert stopped.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: {name} ")
        # The exit code of a script is what `main` returns.
        args = arguments("gqa", tmp_path / "none", "any", tmp_path / "out")
        monkeypatch.setattr(sys, "argv", [program, *args])
        assert command() == 2
        assert "--data must be a folder" in capsys.readouterr().err
