"""The plot of a training: whether the student learns, at a first look."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from plain_models import ConstantEnergy
from test_callbacks import fitted
from test_student_answers import distiller as answering
from test_student_answers import records

from keras_betakd import (
    DistillationHistory,
    FixedBeta,
    ForwardKLEnergy,
    StudentAnswers,
    StudentBranches,
    TaskBeta,
)
from keras_betakd.history_plot import history_figure


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are written, in order."""
    figures = []
    save = Figure.savefig

    def savefig(figure, *args, **kwargs):
        figures.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


def panels(figure):
    return {axis.get_title(): axis for axis in figure.axes if axis.get_title()}


def curves(axis):
    """The curves of a panel by name, those of its right-hand axis too."""
    twins = axis.get_shared_x_axes().get_siblings(axis)
    lines = [line for twin in [axis, *twins] for line in twin.get_lines()]
    return {line.get_label(): line for line in lines}


def note(axis):
    (text,) = (text.get_text() for text in axis.texts)
    return text


def test_the_first_panel_shows_whether_the_student_learns(tmp_path, drawn):
    """`loss` stood first, which falls with beta; accuracy and validation nowhere."""
    history = DistillationHistory(every=1)
    logs = fitted(history, beta=TaskBeta(dim=2.0), epochs=2, validation=True)
    history.plot(tmp_path / "new" / "history.png", title="A run")
    found = panels(drawn[0])
    assert list(found) == [
        *("Does the student learn?", "Loss", "Energies", "Betas", "perplexity")
    ]
    first = found["Does the student learn?"]
    assert note(first) == (
        "Monitor val_task_loss, val_accuracy or val_objective; never val_loss, which "
        "falls by a learned beta alone."
    )
    lines = curves(first)
    for name in ("task_loss", "accuracy"):
        steps, values = lines[name].get_data()
        assert list(steps) == list(range(1, 11))
        assert values == pytest.approx([row[name] for row in history.rows])
        steps, values = lines[f"val_{name}"].get_data()
        assert list(steps) == [5, 10]
        assert values == pytest.approx(logs[f"val_{name}"])
    assert set(curves(found["Loss"])) == {
        *("loss", "val_loss", "objective", "val_objective")
    }


def test_a_quantity_has_one_colour(tmp_path, drawn):
    """Training solid, validation dashed, and an energy and its beta alike."""
    history = DistillationHistory(every=1)
    energies = {"kl": ForwardKLEnergy(), "none": ConstantEnergy(0.1)}
    fitted(history, energies, TaskBeta(), epochs=2, validation=True, task_beta=True)
    figure = history.plot()
    found = panels(figure)
    learning, betas = (curves(found[n]) for n in ("Does the student learn?", "Betas"))
    for name, line in {**learning, **curves(found["Energies"])}.items():
        if name.startswith("val_"):
            assert line.get_linestyle() == "--", name
    colors = {
        "kl": [curves(found["Energies"])[n] for n in ("kl", "val_kl")] + [betas["kl"]],
        "none": [curves(found["Energies"])["none"], betas["none"]],
        "task": [learning["task_loss"], learning["val_task_loss"], betas["task"]],
        "accuracy": [learning["accuracy"], learning["val_accuracy"]],
    }
    own = {n: {line.get_color() for line in lines} for n, lines in colors.items()}
    assert [len(found) for found in own.values()] == [1] * 4, own
    assert len(set.union(*own.values())) == 4, own


def test_betas_stand_beside_their_best_values_and_bounds(tmp_path, drawn):
    history = DistillationHistory(every=1)
    fitted(history, beta=TaskBeta(dim=2.0, max_value=5.0), epochs=2)
    axis = panels(history.plot())["Betas"]
    energies = np.array([row["forward_kl"] for row in history.rows])
    dotted = [line for line in axis.get_lines() if line.get_linestyle() == ":"]
    np.testing.assert_allclose(dotted[0].get_ydata(), np.minimum(1 / energies, 5.0))
    flat = [line.get_ydata() for line in axis.get_lines() if len(line.get_xdata()) == 2]
    assert {values[0] for values in flat} == {0.01, 5.0}
    assert axis.get_yscale() == "log"
    assert {"best value, d / (2 energy)", "bounds"} <= set(curves(axis))


def test_legends_hide_no_curve():
    """They stood on the curves where these filled their panel."""
    rows = [
        {
            "step": i,
            "task_loss": 1 / i,
            "accuracy": i / 9,
            "loss": 1.0,
            "objective": 1.0,
        }
        | {f"energy_{k}": k / i for k in (1, 2, 3)}
        | {f"energy_{k}_beta": i / k for k in (1, 2, 3)}
        for i in range(1, 9)
    ]
    figure = history_figure(rows, {}, "Three energies")
    figure.draw_without_rendering()
    inside = [axis.get_window_extent() for axis in figure.axes]
    for axis in panels(figure).values():
        legend = axis.get_legend().get_window_extent()
        assert not any(box.overlaps(legend) for box in inside), axis.get_title()
        assert figure.bbox.containsx(legend.x0) and figure.bbox.containsx(legend.x1)


def test_the_students_own_answers_are_drawn():
    """`History` had them, the plot and the rows had not."""
    history = DistillationHistory(every=1)
    data = StudentAnswers(records(), lambda epoch: (1 + epoch) / 4)
    options = {"epochs": 2, "batch_size": 4, "verbose": 0}
    logs = answering().fit(data, callbacks=[history], **options).history
    axis = panels(history.plot())["The student's own answers"]
    assert note(axis) == "2 to 4 prompts an epoch"
    lines = curves(axis)
    for name in ("answer_tokens", "answers_ended"):
        steps, values = lines[name].get_data()
        assert list(steps) == [2, 4]
        assert list(values) == logs[name]


def test_branches_of_the_student_are_drawn():
    """By one curve: their number is the same in most epochs."""
    history = DistillationHistory(every=1)
    options = {"epochs": 2, "batch_size": 4, "verbose": 0}
    data = StudentBranches(records(), 0.5)
    logs = answering().fit(data, callbacks=[history], **options).history
    found = panels(history.plot())
    axis = found["Branches of the student"]
    assert note(axis) == "4 an epoch, and the share whose token is the given one"
    steps, values = curves(axis)["branches_given"].get_data()
    assert list(steps) == [2, 4] and list(values) == logs["branches_given"]
    assert not {"branches", "unbranched"} & set(found)


def test_steps_are_whole_and_scales_fit(tmp_path, drawn):
    """A run of 3 steps had ticks at 1.5 steps; an energy of 0 has no logarithm."""
    history = DistillationHistory(every=2)
    energies = {"kl": ForwardKLEnergy(), "none": ConstantEnergy(0.0)}
    fitted(history, energies, FixedBeta(), epochs=1)
    history.plot(tmp_path / "history.png")
    for axis in panels(drawn[0]).values():
        ticks = axis.get_xticks()
        assert np.array_equal(ticks, np.round(ticks))
    assert panels(drawn[0])["Energies"].get_yscale() == "linear"
    assert len(curves(panels(drawn[0])["Betas"])["kl"].get_xdata()) == 3


def test_a_resumed_training_keeps_its_validation(tmp_path, drawn):
    path = tmp_path / "history.csv"
    fitted(DistillationHistory(every=2, path=path), epochs=2, validation=True)
    resumed = DistillationHistory(every=2, path=path)
    resumed.rows = resumed._kept_rows()
    assert [("val_loss" in row) for row in resumed.rows] == [False, False, True] * 2
    DistillationHistory(path=path).plot(tmp_path / "history.pdf")
    lines = curves(panels(drawn[0])["Does the student learn?"])
    assert list(lines["val_accuracy"].get_xdata()) == [5, 10]
    assert (tmp_path / "history.pdf").read_bytes().startswith(b"%PDF")


def test_the_file_is_replaced_once_it_is_complete(tmp_path, monkeypatch):
    history = DistillationHistory(every=1)
    fitted(history)
    path = tmp_path / "history.png"
    history.plot(path)
    before = path.read_bytes()
    assert before.startswith(b"\x89PNG")

    def full(figure, file, **kwargs):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OSError, match="No space left"):
        history.plot(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["history.png"]


def test_a_run_without_validation_is_told_of_it():
    rows = [{"step": 1, "loss": 1.0, "task_loss": 1.0}]
    found = panels(history_figure(rows, {}))
    assert set(found) == {"Does the student learn?", "Loss"}
    assert note(found["Does the student learn?"]) == (
        "No validation: pass validation_data to fit, and monitor val_task_loss, "
        "val_accuracy or val_objective, never val_loss."
    )


def test_a_plain_model_has_its_loss_in_the_first_panel():
    """Without betas there is nothing wrong with `val_loss`."""
    rows = [{"step": i, "loss": 1 / i, "val_loss": 2 / i} for i in (1, 2)]
    ((title, axis),) = panels(history_figure(rows, {})).items()
    assert set(curves(axis)) == {"loss", "val_loss"}
    assert note(axis) == "Monitor val_loss."
