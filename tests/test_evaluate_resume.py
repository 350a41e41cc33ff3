"""A run goes on with the same model, questions and images only, in one process."""

import json
import os
import pathlib
import shutil

import keras
import numpy as np
import pytest
from benchmark_folders import write_benchmark
from PIL import Image
from test_evaluate import arguments, command, count_lines, report_of, saved
from tiny_models import tiny_gemma3

from keras_betakd import fingerprints
from keras_betakd.data import load_image
from keras_betakd.evaluate import main
from keras_betakd.evaluation import read_jsonl, run
from keras_betakd.folders import LOCK_NAME, FolderOwner


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    keras.utils.set_random_seed(0)
    model = tiny_gemma3(width=16, sequence_length=320)
    return saved(model, tmp_path_factory.mktemp("presets") / "student")


@pytest.fixture
def begun(student, tmp_path):
    """A run that has answered two of four questions: its preset, data and output."""
    preset, data = tmp_path / "preset", tmp_path / "data"
    shutil.copytree(student, preset)
    write_benchmark("gqa", data, 4)
    args = arguments("gqa", data, preset, tmp_path / "out")
    assert main([*args, "--limit", "2"]) == 0
    return preset, data, args


def change_weights(preset, data):
    """One bit of the weights; size, dates and metadata.json stay as they were."""
    path = next(preset.glob("*.weights.h5"))
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def change_config(preset, data):
    path = preset / "preprocessor.json"
    config = json.loads(path.read_text())
    config["config"]["sequence_length"] = 300
    path.write_text(json.dumps(config))


def change_answered_image(preset, data):
    """The same size, and the dates of the file before."""
    path = data / "images" / "n1.jpg"
    status, pixels = path.stat(), load_image(path)
    Image.fromarray(255 - pixels).save(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def change_question(preset, data):
    """One that is not answered yet."""
    path = data / "llava_gqa_testdev_balanced.jsonl"
    path.write_text(path.read_text().replace("shape one two 2?", "shape 2?"))


def change_right_answer(preset, data):
    path = data / "testdev_balanced_questions.json"
    questions = json.loads(path.read_text())
    questions["203"]["answer"] = "mauve"
    path.write_text(json.dumps(questions))


CHANGES = {
    change_weights: "model_files: model.weights.h5 was",
    change_config: "model_files: preprocessor.json was",
    change_answered_image: "Record '201': its image is not the one that line 2",
    change_question: "questions was",
    change_right_answer: "questions was",
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_after_a_stop_is_named(change, begun, tmp_path, capsys):
    """One report was made of two models, or of two data sets."""
    preset, data, args = begun
    lines = (tmp_path / "out" / "answers.jsonl").read_bytes()
    change(preset, data)
    capsys.readouterr()
    assert main(args) == 2
    error = capsys.readouterr().err
    assert CHANGES[change] in error and "another --output" in error
    assert (tmp_path / "out" / "answers.jsonl").read_bytes() == lines


def test_an_image_that_is_not_answered_yet_may_be_mended(begun):
    _, data, args = begun
    Image.fromarray(np.zeros((9, 9, 3), "uint8")).save(data / "images" / "n3.jpg")
    assert main(args) == 0


def test_the_data_may_be_moved(begun, tmp_path):
    preset, data, _ = begun
    data.rename(tmp_path / "moved")
    assert main(arguments("gqa", tmp_path / "moved", preset, tmp_path / "out")) == 0


def test_another_version_scores_but_does_not_answer(begun, tmp_path, capsys):
    preset, data, args = begun
    found = report_of(tmp_path / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fingerprints, "__version__", "0.0.1")
        assert main([*args, "--limit", "2"]) == 0
        report = report_of(tmp_path / "out")
        assert report["scores"] == found["scores"]
        assert report["versions"]["keras_betakd"] == "0.0.1"
        made_by = report["settings"]["made_by"]
        assert made_by == found["settings"]["made_by"]
        assert made_by["keras_betakd"] != "0.0.1"
        assert main(args) == 2
    assert "made_by: keras_betakd was" in capsys.readouterr().err
    assert main(args) == 0


def test_another_model_of_the_same_name(begun, monkeypatch, tmp_path, capsys):
    """A handle, such as hf://..., has no files here, and its model may be replaced."""
    preset, data, _ = begun
    models = {"first": 0, "second": 1}

    def load(seed):
        keras.utils.set_random_seed(seed)
        return tiny_gemma3(width=16, sequence_length=320)

    args = arguments("gqa", data, "hf://a/b", tmp_path / "other")
    monkeypatch.setattr(run, "load_model", lambda name: load(models["first"]))
    assert main([*args, "--limit", "2"]) == 0
    monkeypatch.setattr(run, "load_model", lambda name: load(models["second"]))
    assert main(args) == 2
    assert "made_by: model was" in capsys.readouterr().err
    assert count_lines(tmp_path / "other" / "answers.jsonl") == 2
    monkeypatch.setattr(run, "load_model", lambda name: load(models["first"]))
    assert main(args) == 0


def test_settings_and_answers_of_two_runs_do_not_mix(begun, tmp_path, capsys):
    _, _, args = begun
    path = tmp_path / "out" / "run.json"
    settings = json.loads(path.read_text())
    settings["made_by"]["model"] = "0"
    path.write_text(json.dumps(settings))
    assert main(args) == 2
    assert "Line 1 of" in (error := capsys.readouterr().err) and "run.json" in error


def test_one_process_answers(begun, tmp_path):
    """Two with one --output both ended with 0, and answered everything twice."""
    _, _, args = begun
    with FolderOwner(tmp_path / "out", "a test"):
        other = command(*args)
        message = other.communicate()[1].decode()
    assert other.returncode == 2
    assert f"in use by process {os.getpid()}" in message and "(a test)" in message
    assert main(args) == 0
    lines = read_jsonl(tmp_path / "out" / "answers.jsonl")
    assert [line["answer_id"] for line in lines] == ["200", "201", "202", "203"]
    assert not (tmp_path / "out" / LOCK_NAME).exists()


def test_nothing_is_written_outside_the_output(begun, tmp_path, monkeypatch, capsys):
    preset, data, args = begun
    answers, other = tmp_path / "out" / "answers.jsonl", tmp_path / "precious"
    answers.rename(other)
    answers.symlink_to(other)
    content = other.read_bytes()
    assert main(args) == 2
    assert "leads out of the folder" in capsys.readouterr().err
    assert other.read_bytes() == content
    # The name of the default folder is that of the preset, never "." or "..".
    assert len(os.listdir(tmp_path)) == 4
    below = preset / "below"
    below.mkdir()
    monkeypatch.chdir(below)
    args = ["--model", "..", "--benchmark", "gqa", "--data", str(data)]
    assert main([*args, "--max-new-tokens", "4", "--limit", "1"]) == 0
    assert pathlib.Path("output/evaluate/preset/gqa/report.json").exists()
