"""Each example is the one owner of the folder that it writes to."""

import json
import os
import subprocess
import sys

import pytest

from keras_betakd.folders import FolderOwner

EXAMPLES = os.path.join(os.path.dirname(os.path.dirname(__file__)), "examples")
sys.path.insert(0, EXAMPLES)

import distil  # noqa: E402

COMMANDS = {
    "distil": "--teacher none --student none --data none",
    "scienceqa": "",
    "mobilevlm": "small",
    "schedules": "",
    "three_losses": "",
    "distributed": "",
    "train_teacher": "",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_second_process_is_refused_at_once(name, tmp_path):
    """Two wrote one folder at a time, each over the other's history and student."""
    script = os.path.join(EXAMPLES, f"{name}.py")
    command = [sys.executable, script, *COMMANDS[name].split()]
    with FolderOwner(tmp_path, "a test"):
        result = subprocess.run(
            [*command, "--output", str(tmp_path)], capture_output=True, text=True
        )
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert "FolderInUseError" in last and f"process {os.getpid()}" in last
    assert os.listdir(tmp_path) == []


def test_images_of_distil_stay_in_the_folder_of_the_data(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    row = {"image": "../secret.png", "question": "q", "answer": "a"}
    (data / "train.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match="inside its folder"):
        distil.QuestionFolder(data / "train.jsonl", 1)[0]
