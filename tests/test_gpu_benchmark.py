"""`benchmarks/gpu.py`: a line that fails is told, and hides no other."""

import os
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.append(os.path.join(ROOT, "benchmarks"))

import gpu  # noqa: E402
import head_loss  # noqa: E402
import measure  # noqa: E402
import train_step  # noqa: E402

NUMBERS = {"seconds": [0.002], "megabytes": 3.0}
ENVIRONMENT = {"device": "a card", "gpu": True, "versions": "torch 2"}


def run(monkeypatch, answers, *options):
    """The exit status of gpu.py, whose processes give `answers(script, arguments)`."""
    monkeypatch.setattr(sys, "argv", ["gpu.py", *options])
    monkeypatch.setattr(gpu, "in_fresh_process", lambda *job: answers(*job[:2]))
    with pytest.raises(SystemExit) as exit:
        gpu.main()
    return exit.value.code


def is_environment(script):
    return os.path.basename(script) == "gpu.py"


def test_a_failed_line_hides_no_other(monkeypatch, capsys):
    def answers(script, arguments):
        if is_environment(script):
            return ENVIRONMENT
        if "liger" in arguments:
            return measure.NOT_INSTALLED
        if "dense" in arguments and "0.25" in arguments:
            return {"failed": "out of memory"}
        return NUMBERS

    assert run(monkeypatch, answers, "--backends", "torch") == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum("out of memory" in line for line in lines) == 1
    assert sum("not installed" in line for line in lines) == 2
    assert sum(" 2.0 " in line for line in lines) == 8
    assert lines[1] == "torch, a card; torch 2"


def test_liger_is_not_needed(monkeypatch):
    def answers(script, arguments):
        if is_environment(script):
            return ENVIRONMENT
        return measure.NOT_INSTALLED if "liger" in arguments else NUMBERS

    assert run(monkeypatch, answers) == 0


def test_a_backend_without_a_gpu_is_not_measured(monkeypatch, capsys):
    def answers(script, arguments):
        if is_environment(script):
            return {**ENVIRONMENT, "device": "cpu", "gpu": False}
        return NUMBERS

    assert run(monkeypatch, answers) == 1
    assert "jax: no GPU, but cpu" in capsys.readouterr().out
    assert run(monkeypatch, answers, "--toy") == 0


@pytest.mark.parametrize("size", gpu.SIZES)
def test_the_scripts_know_the_options(monkeypatch, size):
    scripts = {"head_loss.py": head_loss, "train_step.py": train_step}
    for group in gpu.groups("torch", gpu.SIZES[size]):
        for _, path, (script, arguments) in group:
            monkeypatch.setattr(sys, "argv", [script, *arguments])
            options = scripts[os.path.basename(script)].arguments()
            assert path in options.worker
            assert options.dtype == "bfloat16"


def test_a_process_that_hangs_or_is_none_fails(tmp_path):
    script = tmp_path / "wait.py"
    script.write_text("import time; time.sleep(60)")
    found = measure.in_fresh_process(script, [], "torch", limit=0.2)
    assert found == {"failed": "no result within 0 s"}
    found = measure.in_fresh_process(script, [], "torch", "/no/python")
    assert found == {"failed": "no Python at /no/python"}
