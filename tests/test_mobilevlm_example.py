"""`examples/mobilevlm.py`, its small setting cut down."""

import csv
import json
import os
import sys

import pytest

EXAMPLES = os.path.join(os.path.dirname(os.path.dirname(__file__)), "examples")
sys.path.insert(0, EXAMPLES)

import mobilevlm  # noqa: E402
import mobilevlm_data  # noqa: E402

from keras_betakd.mobilevlm import MobileVLMCausalLM  # noqa: E402
from keras_betakd.models import load_model  # noqa: E402


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["mobilevlm.py", *map(str, arguments)])
    mobilevlm.main()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mobilevlm")
    mobilevlm_data.write_checkpoints(folder)
    mobilevlm_data.write_data(folder, count=8)
    data = folder / "conversations.json"
    records = json.loads(data.read_text())
    records[1]["conversations"][1]["value"] = "red " * 9
    data.write_text(json.dumps(records))
    return folder


def stage(folder, name, student, data, *more):
    """The arguments of a stage, small enough for a test."""
    return (
        *(name, "--teacher", folder / "teacher", "--student", student),
        *("--vision-tower", folder / "clip", "--data", folder / data),
        *("--images", folder / "images", "--output", folder),
        *("--batch-size", 4, "--sequence-length", 208, "--max-response-length", 8),
        *more,
    )


def test_a_language_model_learns_to_use_images_in_two_stages(
    monkeypatch, folder, capsys
):
    """The first stage starts from public checkpoints, the second from a preset."""
    language_model = folder / "language_model"
    run(monkeypatch, *stage(folder, "pretrain", language_model, "captions.json"))
    first = load_model(folder / "pretrain" / "student")
    assert first.preprocessor.template == "plain"
    assert first.preprocessor.image_converter.aspect_ratio == "crop"
    student = folder / "pretrain" / "student"
    more = ("--teacher-dtype", "float32", "--limit", 8)
    run(monkeypatch, *stage(folder, "finetune", student, "conversations.json", *more))
    assert "7 records; 1 too long, left out" in capsys.readouterr().out
    second = load_model(folder / "finetune" / "student")
    assert isinstance(second, MobileVLMCausalLM)
    assert second.preprocessor.template == "v1"
    assert second.preprocessor.image_converter.aspect_ratio == "pad"
    for name in ("pretrain", "finetune"):
        with open(folder / name / "history.csv") as file:
            (row, *_) = csv.DictReader(file)
        assert float(row["image_beta"]) > 0 and float(row["answer_beta"]) > 0
        plot = (folder / name / "history.png").read_bytes()
        assert plot.startswith(b"\x89PNG")


def test_what_a_stage_needs(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "pretrain")
    assert "--teacher, --student and --data are needed" in capsys.readouterr().err
