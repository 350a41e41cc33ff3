"""`examples/distil.py` on tiny presets and a folder of questions."""

import csv
import json
import os
import sys

import keras_hub
import pytest
from PIL import Image
from tiny_families import tiny_text
from tiny_models import random_image, tiny_gemma3, tiny_gemma_text

EXAMPLES = os.path.join(os.path.dirname(os.path.dirname(__file__)), "examples")
sys.path.insert(0, EXAMPLES)

import distil  # noqa: E402

from keras_betakd.models import load_model  # noqa: E402


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["distil.py", *map(str, arguments)])
    distil.main()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Presets, and questions with none, one and two images."""
    folder = tmp_path_factory.mktemp("distil")
    for name, width in (("teacher", 16), ("student", 8)):
        tiny_gemma3(width=width, max_images=2).save_to_preset(folder / name)
    tiny_gemma_text().save_to_preset(folder / "reader")
    tiny_text("GPT2").save_to_preset(folder / "other")
    for i in range(2):
        Image.fromarray(random_image(i, 20, 30)).save(folder / f"{i}.png")
    rows = [
        {"image": "0.png", "question": "what color?", "answer": "red"},
        {"question": "is there a <image> circle?", "answer": "yes"},
        {"image": ["0.png", "1.png"], "question": "the same?", "answer": "no"},
    ]
    lines = "\n".join(map(json.dumps, rows))
    for name in ("train", "test"):
        (folder / f"{name}.jsonl").write_text(lines)
    return folder


def test_lora_student_and_int8_teacher(monkeypatch, tmp_path, folder, capsys):
    run(
        monkeypatch,
        *("--teacher", folder / "teacher", "--student", folder / "student"),
        *("--data", folder, "--output", tmp_path, "--quantize", "int8"),
        *("--lora-rank", 2, "--batch-size", 3, "--epochs", 2),
        *("--max-response-length", 8),
    )
    printed = capsys.readouterr().out
    assert "student: projector" in printed
    assert "of 3 answers are the expected text" in printed
    with open(tmp_path / "history.csv") as file:
        assert len(list(csv.DictReader(file))) == 2
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")
    answers = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert json.loads(answers[0])["answer"] == "red"
    student = load_model(tmp_path / "student")
    assert not any("lora" in w.path for w in student.weights)
    # keras-hub alone wants to be told what a preset of a mixed policy becomes.
    keras_hub.models.CausalLM.from_preset(str(tmp_path / "student"), dtype="bfloat16")


@pytest.mark.parametrize(
    "student, options",
    [("reader", ["--energy", "forward-kl"]), ("other", ["--energy", "uld"])],
)
def test_a_student_without_vision(monkeypatch, tmp_path, folder, student, options):
    """With the teacher's tokenizer and with another one."""
    run(
        monkeypatch,
        *("--teacher", folder / "teacher", "--student", folder / student),
        *("--data", folder, "--output", tmp_path, "--blind-student"),
        *("--batch-size", 3, "--limit", 3, "--max-response-length", 8, *options),
    )
    assert (tmp_path / "answers.jsonl").exists()


def test_help_explains_the_folder(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "--help")
    printed = capsys.readouterr().out
    for text in ("train.jsonl", "--lora-layers", "--quantize", "--vocabulary-size"):
        assert text in printed
