"""The examples, shrunk: the real path on a folder in the official layout."""

import contextlib
import csv
import io
import json
import os
import sys

import keras_hub
import pytest
from scienceqa_folder import write_folder
from tiny_models import tiny_gemma3

EXAMPLES = os.path.join(os.path.dirname(os.path.dirname(__file__)), "examples")
sys.path.insert(0, EXAMPLES)

import on_policy  # noqa: E402
import schedules  # noqa: E402
import scienceqa  # noqa: E402
import three_losses  # noqa: E402


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["scienceqa.py", *map(str, arguments)])
    scienceqa.main()


@pytest.fixture(scope="module")
def presets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("presets")
    for name, width in (("teacher", 16), ("student", 8)):
        model = tiny_gemma3(width=width, sequence_length=512)
        model.save_to_preset(str(folder / name))
    return folder


def test_real_models_on_a_real_folder(monkeypatch, tmp_path, presets, capsys):
    """With choice letters, text-only questions beside images, LoRA and bfloat16."""
    data = write_folder(str(tmp_path / "data"), num=12)
    output = tmp_path / "output"
    run(
        monkeypatch,
        *("--data", data, "--output", output),
        *("--teacher", presets / "teacher", "--student", presets / "student"),
        *("--energy", "forward-kl", "--beta", "token", "--epochs", 2),
        *("--batch-size", 3, "--lora-rank", 2, "--dtype", "bfloat16"),
        *("--limit", 3, "--eval-limit", 2, "--max-response-length", 12),
    )
    printed = capsys.readouterr().out
    for line in ("teacher ", "student before", "student + Beta-KD", "saved student"):
        assert line in printed
    with open(output / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert all(float(row["forward_kl_beta"]) > 0 for row in rows)
    for name in ("history.png", "answer.png"):
        assert (output / name).read_bytes().startswith(b"\x89PNG")
    student = keras_hub.models.CausalLM.from_preset(str(output / "student"))
    assert student.backbone.hidden_dim == 8


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    """Arguments of a run of one step on made-up data, and its output."""
    folder, printed = tmp_path_factory.mktemp("output"), io.StringIO()
    arguments = ["--output", folder, "--epochs", 1, "--batch-size", 8]
    arguments += ["--limit", 8, "--eval-limit", 8]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        run(patch, *arguments)
    return folder, arguments, printed.getvalue()


def test_easy_vqa_is_read_as_scienceqa(short_run):
    folder, _, printed = short_run
    assert "student, cross-entropy" in printed
    assert "student, Beta-KD" in printed
    with open(folder / "easy_vqa" / "pid_splits.json") as file:
        splits = json.load(file)
    assert len(splits["train"]) + len(splits["val"]) == 38575
    assert len(splits["test"]) == 9673


def test_an_ended_run_is_shown_again_and_not_changed(monkeypatch, short_run, capsys):
    _, arguments, printed = short_run
    run(monkeypatch, *arguments, "--resume")
    again = capsys.readouterr().out
    assert "Epoch 1/1" not in again
    assert printed[printed.index("model ") :] in again
    with pytest.raises(SystemExit, match="Changed: seed was 0"):
        run(monkeypatch, *arguments, "--resume", "--seed", 1)


def test_studies_leave_their_plots(monkeypatch, short_run, tmp_path, capsys):
    # The data, which takes longer to write than the studies to run.
    os.symlink(short_run[0] / "easy_vqa", tmp_path / "easy_vqa")
    monkeypatch.setattr(three_losses, "BOUNDS", {"some": (0.1, 10.0)})
    small = {
        schedules: ["--steps", "2"],
        three_losses: ["--epochs", "2", "--seeds", "1", "--questions", "8"],
        on_policy: "--records 16 --teacher-records 64 --test-records 4".split()
        + "--warm-start 1 --epochs 1".split(),
    }
    for module, arguments in small.items():
        command = [module.__name__, "--output", str(tmp_path), *arguments]
        monkeypatch.setattr(sys, "argv", command)
        module.main()
        plot = tmp_path / f"{module.__name__}.png"
        assert plot.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "some | 0 | " in printed


def test_shipped_teacher_is_small():
    size = sum(
        os.path.getsize(os.path.join(folder, name))
        for folder, _, names in os.walk(os.path.join(EXAMPLES, "presets"))
        for name in names
    )
    assert size <= 3_000_000


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--data", "x"], "--data, --teacher and --student go together"),
        (["--energy", "l2"], "invalid choice: 'l2'"),
    ],
)
def test_bad_arguments_are_explained(monkeypatch, capsys, arguments, message):
    with pytest.raises(SystemExit):
        run(monkeypatch, *arguments)
    assert message in capsys.readouterr().err


def test_help_names_every_option(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "--help")
    printed = capsys.readouterr().out
    for option in ("--energy", "--beta", "--lora-rank", "--dtype", "--output"):
        assert option in printed
