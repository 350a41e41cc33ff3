"""Each example is the one owner of the folder that it writes to."""

import importlib
import json
import os
import subprocess
import sys

import pytest
from test_folders import PREAMBLE

from keras_betakd.folders import FolderInUseError

EXAMPLES = os.path.join(os.path.dirname(os.path.dirname(__file__)), "examples")
HOLDER = PREAMBLE + "owner = FolderOwner(folder, 'x'); print(1, flush=True); input()"
COMMANDS = {
    "distil": "--teacher none --student none --data none",
    "scienceqa": "",
    "mobilevlm": "small",
    "schedules": "",
    "three_losses": "",
    "distributed": "",
    "train_teacher": "",
}


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """A folder that another process owns."""
    folder = tmp_path_factory.mktemp("held")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), "0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    holder.stdout.readline()
    yield folder
    holder.communicate(b"\n")


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


@pytest.mark.parametrize("name", COMMANDS)
def test_a_second_process_is_refused_at_once(name, held, example, monkeypatch):
    """Two wrote one folder at a time, each over the other's history and student."""
    arguments = [f"{name}.py", *COMMANDS[name].split(), "--output", str(held)]
    monkeypatch.setattr(sys, "argv", arguments)
    before = os.listdir(held)
    with pytest.raises(FolderInUseError, match="is in use by process"):
        example(name).main()
    assert os.listdir(held) == before


def test_images_of_distil_stay_in_the_folder_of_the_data(tmp_path, example):
    data = tmp_path / "data"
    data.mkdir()
    row = {"image": "../secret.png", "question": "q", "answer": "a"}
    (data / "train.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match="inside its folder"):
        example("distil").QuestionFolder(data / "train.jsonl", 1)[0]
