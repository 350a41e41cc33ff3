"""The history: means of each window, not Keras' means since the epoch began."""

import csv

import keras
import keras_hub
import numpy as np
import pytest
from plain_models import ConstantEnergy, linear_model, token_batch

from keras_betakd import (
    BetaKDDistiller,
    DistillationHistory,
    FixedBeta,
    ForwardKLEnergy,
    TaskBeta,
)


def fitted(history, energy=None, beta=None, epochs=1, validation=False, **options):
    """A distiller trained on batches of different numbers of supervised examples."""
    distiller = BetaKDDistiller(
        linear_model(1), linear_model(2), energy or ForwardKLEnergy(), beta, **options
    )
    metrics = [keras_hub.metrics.Perplexity(from_logits=True, name="perplexity")]
    distiller.compile(optimizer=keras.optimizers.SGD(0.1), metrics=metrics)
    x, y, weight = token_batch(batch=5)
    data = {"validation_data": (x, y, weight)} if validation else {}
    return distiller.fit(
        x,
        y,
        sample_weight=weight,
        batch_size=1,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=[history],
        **data,
    ).history


@pytest.mark.backends
@pytest.mark.traced
def test_windows_hold_their_own_mean():
    """Each batch once counted alike, whatever it had to count."""
    single, pairs = DistillationHistory(every=1), DistillationHistory(every=2)
    logs = [fitted(history, beta=TaskBeta(), epochs=2) for history in (single, pairs)]
    assert [row["step"] for row in pairs.rows] == [2, 4, 5, 7, 9, 10]
    # The third example has no label: of the second window, the fourth alone counts.
    windows = {0: (0, 1), 1: (3,), 2: (4,), 3: (5, 6), 4: (8,), 5: (9,)}
    for number, steps in windows.items():
        for name in ("loss", "task_loss", "forward_kl", "forward_kl_beta"):
            expected = np.mean([single.rows[i][name] for i in steps])
            assert pairs.rows[number][name] == pytest.approx(expected, rel=1e-4), name
    # No mean of means: a function of the window's energies, or as Keras has it.
    row = pairs.rows[0]
    expected = row["task_loss"] + 0.5 * (1 + np.log(2 * row["forward_kl"]))
    assert row["objective"] == pytest.approx(expected, rel=1e-4)
    ends = [pairs.rows[i]["perplexity"] for i in (2, 5)]
    assert ends == pytest.approx(logs[1]["perplexity"])


def test_a_callback_of_a_plain_model_has_its_metrics():
    model = linear_model(1)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y, _ = token_batch()
    history = DistillationHistory(every=1)
    model.fit(x, y, batch_size=2, verbose=0, callbacks=[history])
    assert [set(row) for row in history.rows] == [{"step", "loss"}] * 2


def test_a_broken_training_keeps_its_rows(tmp_path):
    """The file once lost the rows from before the training was killed."""
    path = tmp_path / "history.csv"

    def fit(epochs, initial_epoch=0):
        distiller = BetaKDDistiller(
            linear_model(1), linear_model(2), ForwardKLEnergy(), FixedBeta()
        )
        distiller.compile(optimizer=keras.optimizers.SGD(0.0))
        x, y, weight = token_batch()
        history = DistillationHistory(every=1, path=path)
        options = {"epochs": epochs, "initial_epoch": initial_epoch, "verbose": 0}
        options |= {"sample_weight": weight, "batch_size": 2, "shuffle": False}
        distiller.fit(x, y, callbacks=[history], **options)
        return path.read_text()

    unbroken = fit(4)
    # Killed in the fourth epoch; the last backup is of the second.
    assert fit(4, initial_epoch=2) == unbroken
    DistillationHistory(path=path).plot(tmp_path / "history.png")
    assert [line.split(",")[0] for line in unbroken.split()[1:]] == list("12345678")


def test_csv_and_plot(tmp_path):
    distiller = BetaKDDistiller(
        linear_model(1),
        linear_model(2),
        {"kl": ForwardKLEnergy(), "constant": ConstantEnergy()},
        TaskBeta(),
        task_beta=True,
    )
    distiller.compile(optimizer="sgd")
    history = DistillationHistory(every=1)
    x, y, weight = token_batch()
    distiller.fit(
        x, y, sample_weight=weight, batch_size=2, callbacks=[history], verbose=0
    )
    history.write_csv(tmp_path / "history.csv")
    with open(tmp_path / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2"]
    expected = {"loss", "task_loss", "kl", "kl_beta", "constant_beta", "task_beta"}
    assert expected <= set(rows[0])
    history.plot(tmp_path / "history.png", title="A run")
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_recorded_is_said():
    with pytest.raises(ValueError, match="pass this callback to `fit` first"):
        DistillationHistory().write_csv("never.csv")
    with pytest.raises(ValueError, match="Received: every=0"):
        DistillationHistory(every=0)


def test_the_objective_of_rows_counts_labels_as_the_epochs_does():
    """Where half of the records had no label, rows added the whole cross-entropy."""
    x, y, weight = token_batch()
    task_weight = np.array([[1.0], [0.0], [1.0], [0.0]], "float32")
    distiller = BetaKDDistiller(
        linear_model(1), linear_model(2), ForwardKLEnergy(), FixedBeta(1.0)
    )
    distiller.compile(optimizer=keras.optimizers.SGD(0.0))
    history = DistillationHistory()
    x = {"student": x, "teacher": x, "task_weight": task_weight}
    logs = distiller.fit(x, y, sample_weight=weight, verbose=0, callbacks=[history])
    objective = logs.history["objective"][0]
    assert history.rows[-1]["objective"] == pytest.approx(objective, rel=1e-5)
    assert objective == pytest.approx(logs.history["loss"][0], rel=1e-5)
