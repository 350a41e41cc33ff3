"""The plot of a training: whether the student learns, at a first look."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from plain_models import ConstantEnergy
from test_callbacks import fitted

from keras_betakd import DistillationHistory, FixedBeta, ForwardKLEnergy, TaskBeta


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
    return {line.get_label(): line for line in axis.get_lines()}


def test_the_first_panels_show_whether_the_student_learns(tmp_path, drawn):
    """`loss` stood first, which falls with beta; accuracy and validation nowhere."""
    history = DistillationHistory(every=1)
    logs = fitted(history, beta=TaskBeta(dim=2.0), epochs=2, validation=True)
    history.plot(tmp_path / "new" / "history.png", title="A run")
    found = panels(drawn[0])
    assert list(found)[:3] == [
        "cross-entropy (nats per token)",
        "accuracy",
        "total (falls with beta)",
    ]
    for label, name in zip(list(found)[:2], ("task_loss", "accuracy"), strict=True):
        lines = curves(found[label])
        steps, values = lines["training"].get_data()
        assert list(steps) == list(range(1, 11))
        assert values == pytest.approx([row[name] for row in history.rows])
        steps, values = lines["validation"].get_data()
        assert list(steps) == [5, 10]
        assert values == pytest.approx(logs[f"val_{name}"])
    assert {"total", "at the best betas"} <= set(curves(found["total (falls with be"
                                                               "ta)"]))  # fmt: skip
    lines = curves(found["betas"])
    energies = np.array([row["forward_kl"] for row in history.rows])
    np.testing.assert_allclose(lines["d / (2 energy)"].get_ydata(), 1 / energies)
    bounds = [line.get_ydata()[0] for line in found["betas"].get_lines()[-2:]]
    assert bounds == [0.01, 100.0]


def test_steps_are_whole_and_scales_fit(tmp_path, drawn):
    """A run of 3 steps had ticks at 1.5 steps; an energy of 0 has no logarithm."""
    history = DistillationHistory(every=2)
    energies = {"kl": ForwardKLEnergy(), "none": ConstantEnergy(0.0)}
    fitted(history, energies, FixedBeta(), epochs=1)
    history.plot(tmp_path / "history.png")
    for axis in panels(drawn[0]).values():
        ticks = axis.get_xticks()
        assert np.array_equal(ticks, np.round(ticks))
    assert panels(drawn[0])["energies"].get_yscale() == "linear"
    assert len(curves(panels(drawn[0])["betas"])["kl"].get_xdata()) == 3


def test_a_resumed_training_keeps_its_validation(tmp_path, drawn):
    path = tmp_path / "history.csv"
    fitted(DistillationHistory(every=2, path=path), epochs=2, validation=True)
    resumed = DistillationHistory(every=2, path=path)
    resumed.rows = resumed._kept_rows()
    assert [("val_loss" in row) for row in resumed.rows] == [False, False, True] * 2
    DistillationHistory(path=path).plot(tmp_path / "history.pdf")
    lines = curves(panels(drawn[0])["accuracy"])
    assert list(lines["validation"].get_xdata()) == [5, 10]
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


def test_a_run_without_validation_or_accuracy(tmp_path, drawn):
    history = DistillationHistory(every=1)
    history.rows = [{"step": 1, "loss": 1.0, "task_loss": 1.0}]
    history.plot(tmp_path / "history.png")
    assert set(panels(drawn[0])) == {
        "cross-entropy (nats per token)",
        "total (falls with beta)",
    }
