"""The notebook: its script runs, and its cells are those of the script."""

import json
import os
import runpy
import sys

import keras_hub
import pytest

EXAMPLES = os.path.join(os.path.dirname(os.path.dirname(__file__)), "examples")
sys.path.insert(0, EXAMPLES)

import make_notebook  # noqa: E402


@pytest.fixture(scope="module")
def notebook():
    with open(make_notebook.NOTEBOOK) as file:
        return json.load(file)


def test_the_script_ships_a_student(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EPOCHS", "1")
    monkeypatch.setenv("QUESTIONS", "16")
    found = runpy.run_path(make_notebook.SCRIPT)
    assert set(found["scores"]) == {"teacher", "labels alone", "labels and teacher"}
    assert found["scores"]["teacher"] > 80
    assert "val_task_loss" in found["history"].rows[-1]
    assert found["before"] == found["after"]
    assert f"The student answers: {found['answer']}" in capsys.readouterr().out
    shipped = keras_hub.models.CausalLM.from_preset(str(tmp_path / found["folder"]))
    assert shipped.count_params() == found["student"].count_params()


def test_the_notebook_has_the_cells_of_the_script(notebook):
    with open(make_notebook.SCRIPT) as file:
        cells = make_notebook.cells_of(file.read())
    found = [(c["cell_type"], "".join(c["source"])) for c in notebook["cells"]]
    again = "The notebook is another one than its script: run examples/make_notebook.py"
    assert found == cells, again


def test_the_notebook_shows_what_came_out(notebook):
    outputs = [o for c in notebook["cells"] for o in c.get("outputs", [])]
    assert not [o for o in outputs if o["output_type"] == "error"]
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 4, "questions, history, comparison and one answer"
    assert os.path.getsize(make_notebook.NOTEBOOK) < 500_000


def test_cells_are_split_at_their_marks():
    text = "# %% [markdown]\n# # Title\n#\n# Text.\n"
    text += "\n# %%\nx = 1  # one\n\n\n# %%\ny = 2\n"
    assert make_notebook.cells_of(text) == [
        ("markdown", "# Title\n\nText."),
        ("code", "x = 1  # one"),
        ("code", "y = 2"),
    ]
