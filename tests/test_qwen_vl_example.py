"""`examples/qwen_vl.py` on the checkpoints and images of its small setting."""

import csv
import json
import os
import sys

import pytest

EXAMPLES = os.path.join(os.path.dirname(os.path.dirname(__file__)), "examples")
sys.path.insert(0, EXAMPLES)

import qwen_vl  # noqa: E402
import qwen_vl_data  # noqa: E402

from keras_betakd.models import load_model  # noqa: E402
from keras_betakd.qwen_vl import QwenVLCausalLM  # noqa: E402


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["qwen_vl.py", *map(str, arguments)])
    qwen_vl.main()


def test_a_checkpoint_is_distilled_into_another(monkeypatch, tmp_path, capsys):
    """Published-form folders, a chat file, LoRA, an int8 teacher, other limits."""
    qwen_vl_data.write_checkpoints(tmp_path)
    for name, count in (("train", 8), ("test", 4)):
        qwen_vl_data.write_data(tmp_path, name, count)
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    long = json.loads(lines[0])
    long["messages"][1]["content"][0]["text"] = "red " * 9
    (tmp_path / "train.jsonl").write_text("\n".join([json.dumps(long), *lines[1:]]))
    output = tmp_path / "output"
    run(
        *(monkeypatch, "--teacher", tmp_path / "teacher"),
        *("--student", tmp_path / "student", "--data", tmp_path / "train.jsonl"),
        *("--test", tmp_path / "test.jsonl", "--images", tmp_path),
        *("--teacher-dtype", "float32", "--student-dtype", "float32"),
        *("--lora-rank", 2, "--quantize", "int8", "--teacher-max-pixels", 4096),
        *("--sequence-length", 96, "--max-response-length", 4, "--batch-size", 4),
        *("--accumulate", 2, "--image-energy", "mse", "--output", output),
    )
    said = capsys.readouterr().out
    assert "are compared" in said and "student after" in said
    student = load_model(output / "student")
    assert isinstance(student, QwenVLCausalLM)
    answers = [json.loads(a) for a in (output / "answers.jsonl").open()]
    assert len(answers) == 4 and "student_after" in answers[0]
    with open(output / "history.csv") as file:
        *_, row = csv.DictReader(file)
    assert float(row["answer_beta"]) > 0 and float(row["image_beta"]) > 0
    for name in ("history.png", "answers.png"):
        assert (output / name).read_bytes().startswith(b"\x89PNG")


def test_what_a_run_needs(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch)
    assert "--teacher, --student and --data are needed" in capsys.readouterr().err
