"""One training owns a backup's folder, and never removes the state of another."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from plain_models import linear_model, token_batch

from keras_betakd import BetaKDDistiller, ForwardKLEnergy, TrainingBackup
from keras_betakd.folders import FolderInUseError

HERE = os.path.dirname(os.path.abspath(__file__))
BATCH = token_batch()


def distiller():
    keras.utils.set_random_seed(0)
    model = BetaKDDistiller(linear_model(1), linear_model(2), ForwardKLEnergy())
    model.compile(optimizer=keras.optimizers.Adam(0.1))
    return model


def fit(model, backup, epochs, first=0):
    options = {"initial_epoch": first, "callbacks": [backup], "verbose": 0}
    model.fit(*BATCH[:2], epochs=epochs, **options)


def files(folder):
    return sorted(os.listdir(folder))


def test_a_new_training_does_not_begin_below_what_is_there(tmp_path):
    """It once removed the last state of the training before it."""
    fit(distiller(), TrainingBackup(tmp_path), 5)
    before = (tmp_path / "epoch_5.weights.h5").read_bytes()
    with pytest.raises(ValueError, match=r"holds epoch_5.*call `restore\(model\)`"):
        fit(distiller(), TrainingBackup(tmp_path), 7)
    assert (tmp_path / "epoch_5.weights.h5").read_bytes() == before
    model, backup = distiller(), TrainingBackup(tmp_path)
    fit(model, backup, 7, first=backup.restore(model))
    assert files(tmp_path) == ["epoch_7.weights.h5"]


def test_what_was_not_restored_is_not_removed(tmp_path):
    fit(distiller(), TrainingBackup(tmp_path), 2)
    (tmp_path / "notes.txt").touch()
    fit(distiller(), TrainingBackup(tmp_path), 4, first=2)
    assert files(tmp_path) == ["epoch_2.weights.h5", "epoch_4.weights.h5", "notes.txt"]


def test_the_same_backup_trains_again(tmp_path):
    """As when a cell of a notebook runs again: what it wrote is its own."""
    model, backup = distiller(), TrainingBackup(tmp_path)
    fit(model, backup, 3)
    fit(model, backup, 1)
    assert files(tmp_path) == ["epoch_1.weights.h5"]


def test_an_interrupted_training_goes_on_in_its_process(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        callbacks = [TrainingBackup(tmp_path), Stop()]
        distiller().fit(*BATCH[:2], epochs=5, callbacks=callbacks, verbose=0)
    model, backup = distiller(), TrainingBackup(tmp_path)
    assert backup.restore(model) == 2
    fit(model, backup, 3, first=2)
    assert files(tmp_path) == ["epoch_3.weights.h5"]


def test_a_newer_training_in_the_process_takes_the_folder_over(tmp_path):
    old, new = TrainingBackup(tmp_path), TrainingBackup(tmp_path)
    old.set_model(distiller())
    new.set_model(distiller())
    old.on_train_begin()
    new.on_train_begin()
    new.on_epoch_begin(0)
    new.on_epoch_end(0)
    with pytest.raises(FolderInUseError, match="taken over"):
        old.on_epoch_end(0)
    new.on_epoch_end(1)
    assert "epoch_2.weights.h5" in files(tmp_path)


def test_a_second_process_is_refused(tmp_path):
    """Two at once once ended in a FileNotFoundError, and one file less."""
    backup = TrainingBackup(tmp_path)
    backup.set_model(distiller())
    backup.on_train_begin()
    backup.on_epoch_end(0)
    code = f"""
from test_backup_folder import TrainingBackup, distiller, fit
from keras_betakd.folders import FolderInUseError
backup, model = TrainingBackup({str(tmp_path)!r}), distiller()
for begin in (lambda: fit(model, backup, 2), lambda: backup.restore(model)):
    try:
        begin()
    except FolderInUseError as error:
        print("refused", {os.getpid()} and str({os.getpid()}) in str(error))
"""
    path = f"{HERE}{os.pathsep}{os.path.dirname(HERE)}"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert result.stdout.split() == ["refused", "True"] * 2, result.stderr
    backup.on_epoch_end(1)
    backup.on_train_end()
    assert files(tmp_path) == ["epoch_2.weights.h5"]


@pytest.mark.backends
def test_dropout_without_a_seed_goes_on(tmp_path):
    """On PyTorch it draws from the global generator, whose state was not saved."""

    def model():
        inputs = keras.Input((3, 4))
        student = keras.Model(
            inputs, keras.layers.Dense(5)(keras.layers.Dropout(0.5)(inputs))
        )
        model = BetaKDDistiller(linear_model(1), student, ForwardKLEnergy())
        model.compile(optimizer=keras.optimizers.Adam(0.1))
        return model

    keras.utils.set_random_seed(0)
    whole = model()
    whole.train_on_batch(*BATCH)
    whole.save_weights(tmp_path / "a.weights.h5")
    expected = [float(whole.train_on_batch(*BATCH)[0]) for _ in range(3)]
    keras.utils.set_random_seed(5)
    resumed = model()
    resumed.load_weights(tmp_path / "a.weights.h5")
    found = [float(resumed.train_on_batch(*BATCH)[0]) for _ in range(3)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
