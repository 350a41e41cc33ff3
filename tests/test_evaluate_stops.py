"""How the command ends: Ctrl-C at any moment, a full disk, an error of its own."""

import errno
import os
import random
import signal
import subprocess
import sys
import time

import keras
import pytest
from benchmark_folders import write_benchmark
from test_evaluate import arguments, count_lines, data, saved, student, told  # noqa: F401
from tiny_models import tiny_gemma3

from keras_betakd import evaluate, interrupts
from keras_betakd.evaluate import main
from keras_betakd.evaluation import read_jsonl, run

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def command(args, **kwargs):
    return subprocess.Popen(
        [sys.executable, "-m", "keras_betakd.evaluate", *args],
        stdout=kwargs.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        env={**os.environ, "KERAS_BACKEND": keras.config.backend()},
        **kwargs,
    )


# Seconds after the start: the package is imported, the model is loaded and compiled,
# answers are written; how long each takes depends on the machine. Before Python has
# reached the package, which may take a second, Ctrl-C is still Python's own.
MOMENTS = [2.0, 4.5, 7.0, 10.0]


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_is_ctrl_c(moment, student, tmp_path):  # noqa: F811
    """Of 40, four went on to the end and 16 had another code, a traceback or both."""
    folder = write_benchmark("gqa", tmp_path / "data", 1000)
    output = tmp_path / "out"
    process = command(arguments("gqa", folder, student, output, "--batch-size", 1))
    time.sleep(moment + random.Random(moment).uniform(0, 0.5))
    process.send_signal(signal.SIGINT)
    if moment in MOMENTS[::2]:  # twice, as the impatient do
        process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=300)
    assert process.returncode == 130, message.decode()[-2000:]
    assert b"Stopped." in message and b"Traceback" not in message
    assert not (output / "report.json").exists()


def test_ctrl_c_while_answers_are_written(student, tmp_path):  # noqa: F811
    folder, output = write_benchmark("gqa", tmp_path / "data", 1000), tmp_path / "out"
    process = command(arguments("gqa", folder, student, output, "--batch-size", 1))
    while process.poll() is None and not count_lines(output / "answers.jsonl"):
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=300)
    assert process.returncode == 130, message.decode()[-2000:]
    assert f"What is answered is in '{output}'" in message.decode()
    text = (output / "answers.jsonl").read_text()
    # Whole lines, but for the last.
    assert len(read_jsonl_of(text[: text.rindex("\n") + 1], tmp_path)) >= 1


def read_jsonl_of(text, folder):
    path = folder / "lines.jsonl"
    path.write_text(text)
    return read_jsonl(path)


def test_ctrl_c_that_a_library_swallows(data, told, tmp_path, capsys, monkeypatch):  # noqa: F811
    """A library's `except` took it for a preset that cannot be loaded: exit code 2."""

    def swallow(preset, **options):
        try:
            signal.raise_signal(signal.SIGINT)
        except BaseException as error:
            raise ValueError("cannot be loaded") from error

    def ignore(preset, **options):
        try:
            signal.raise_signal(signal.SIGINT)
        except BaseException:
            return tiny_gemma3(sequence_length=320)

    told("gqa")
    args = arguments("gqa", data["gqa"], "any", tmp_path)
    handler = signal.getsignal(signal.SIGINT)
    for load_model in (swallow, ignore):
        monkeypatch.setattr(run, "load_model", load_model)
        assert main(args) == 130
        error = capsys.readouterr().err
        assert "goes on from there" in error and "cannot be loaded" not in error
        assert not count_lines(tmp_path / "answers.jsonl")
        assert signal.getsignal(signal.SIGINT) is handler
    told("gqa")
    assert main(args) == 0


def test_only_the_command_ends_at_once(monkeypatch):
    """A library must not change what Ctrl-C does in the program that imports it."""
    found = []
    monkeypatch.setattr(signal, "signal", lambda number, handler: found.append(handler))
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.default_int_handler)
    module = ["python", "-m", interrupts.MODULE, "--model", "m"]
    for argv, orig_argv, ends in (
        (["train.py"], ["python", "train.py"], False),
        (["train.py", "-m", interrupts.MODULE], ["python", "train.py"], False),
        (["-m"], ["python", "-m", "pytest"], False),
        (["-c"], ["python", "-c", "import keras_betakd.evaluate"], False),
        (["-m", "--model", "m"], module, True),
        ([f"/usr/bin/{interrupts.COMMAND}", "--model"], ["python"], True),
        ([f"{interrupts.COMMAND}.exe"], ["python"], True),
    ):
        found.clear()
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.setattr(sys, "orig_argv", orig_argv)
        interrupts.end_command_at_ctrl_c()
        assert bool(found) == ends, argv
    # Nor where the shell has it ignored.
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN)
    found.clear()
    interrupts.end_command_at_ctrl_c()
    assert not found


resource = pytest.importorskip("resource")


def small_files(size):
    """Lets the process write no file beyond `size` bytes, as on a full disk."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_full_disk(student, tmp_path):  # noqa: F811
    """It ended in a traceback with exit code 1, which says that there is no score."""
    folder, output = write_benchmark("gqa", tmp_path / "data", 30), tmp_path / "out"
    args = arguments("gqa", folder, student, output, "--batch-size", 4)
    assert main([*args, "--limit", "4"]) == 0
    lines = read_jsonl(output / "answers.jsonl")
    size = (output / "answers.jsonl").stat().st_size
    process = command(args, preexec_fn=small_files(size + 100))
    message = process.communicate(timeout=300)[1].decode()
    assert process.returncode == 2, message
    last = message.strip().splitlines()[-1]
    assert last.startswith("error: ") and "cannot be written" in last
    assert "answers.jsonl" in last and "Traceback" not in message
    # What was there is there, and the run goes on.
    assert (
        read_jsonl_of((output / "answers.jsonl").read_text()[:size], tmp_path) == lines
    )
    assert main(args) == 0
    assert count_lines(output / "answers.jsonl") == 30


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full device")
def test_an_output_that_is_full(student, tmp_path):  # noqa: F811
    folder, output = write_benchmark("gqa", tmp_path / "data", 2), tmp_path / "out"
    with open("/dev/full", "w") as full:
        process = command(arguments("gqa", folder, student, output), stdout=full)
        message = process.communicate(timeout=300)[1].decode()
    assert process.returncode == 2, message
    assert message.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in message


@pytest.mark.parametrize("where", ["sort", "write_report", "append"])
def test_errors_while_writing(where, data, told, tmp_path, capsys, monkeypatch):  # noqa: F811
    def full(self, *args):
        raise OSError(errno.ENOSPC, "No space left on device")

    told("gqa")
    with monkeypatch.context() as patch:
        patch.setattr(evaluate.Journal, where, full)
        assert main(arguments("gqa", data["gqa"], "any", tmp_path)) == 2
    assert "error: [Errno 28] No space left" in capsys.readouterr().err
    assert main(arguments("gqa", data["gqa"], "any", tmp_path)) == 0


def test_an_error_of_the_program_has_a_code_of_its_own(
    data,  # noqa: F811
    told,  # noqa: F811
    tmp_path,
    capsys,
    monkeypatch,
):
    """Python's own code for it is 1, which says that the answers have no score."""

    def fail(model, prompts, *args, **kwargs):
        raise RuntimeError("out of memory")
        yield

    told("gqa")
    monkeypatch.setattr(run, "answered_groups", fail)
    assert main(arguments("gqa", data["gqa"], "any", tmp_path)) == 3
    error = capsys.readouterr().err
    assert "Traceback" in error and error.endswith("RuntimeError: out of memory\n")
