"""The history: means of each window, not Keras' means since the epoch began."""

import csv

import keras
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


def test_windows_hold_their_own_mean():
    history = DistillationHistory(every=2)
    history.on_epoch_begin(0)
    values = [4.0, 2.0, 6.0, 1.0, 3.0]
    for batch in range(5):
        mean = np.mean(values[: batch + 1])
        history.on_train_batch_end(batch, {"loss": mean})
    history.on_epoch_end(0)
    history.on_epoch_begin(1)
    history.on_train_batch_end(0, {"loss": 7.0})
    history.on_epoch_end(1)
    assert [row["step"] for row in history.rows] == [2, 4, 5, 6]
    np.testing.assert_allclose(
        [row["loss"] for row in history.rows], [3.0, 3.5, 3.0, 7.0]
    )


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
