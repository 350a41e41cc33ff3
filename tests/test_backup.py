"""A resumed training gives the results of an uninterrupted one."""

import resource
import signal

import keras
import numpy as np
import pytest
from plain_models import linear_model, token_batch

from keras_betakd import AnalyticBeta, BetaKDDistiller, TAIDEnergy, TrainingBackup
from keras_betakd.data import EpochDataset, EpochParts
from keras_betakd.files import atomic_write

EPOCHS, STOP = 4, 2
X, Y, WEIGHT = token_batch(batch=10)


class Rows(EpochDataset):
    """Batches of two rows, shuffled each epoch."""

    def __init__(self):
        super().__init__(range(len(X)), seed=0)
        self.start_epoch(0)

    def cut(self, generator):
        return generator.permutation(len(self.records)).reshape(-1, 2)

    def batch(self, rows):
        return X[rows], Y[rows], WEIGHT[rows]


class Stop(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if self.epochs == STOP and batch == 1:
            raise KeyboardInterrupt

    def on_epoch_begin(self, epoch, logs=None):
        self.epochs = epoch


def distiller(start=2):
    """Dropout, a schedule of the rate, of an energy, and a mean in a beta."""
    keras.utils.set_random_seed(0)
    student = linear_model(start, dropout=0.5)
    model = BetaKDDistiller(linear_model(1), student, TAIDEnergy(20), AnalyticBeta())
    rate = keras.optimizers.schedules.ExponentialDecay(0.1, 3, 0.5)
    model.compile(optimizer=keras.optimizers.Adam(rate))
    return model


def fit(model, callbacks=(), **options):
    options = {"epochs": EPOCHS, "verbose": 0, **options}
    return model.fit(Rows(), callbacks=list(callbacks), **options).history


@pytest.fixture(scope="module")
def unbroken():
    return fit(distiller())


def keeper(way, folder):
    if way == "TrainingBackup":
        return TrainingBackup(folder)
    if way == "BackupAndRestore":
        return keras.callbacks.BackupAndRestore(folder)
    path = folder / "{epoch}.weights.h5"
    return keras.callbacks.ModelCheckpoint(path, save_weights_only=True)


@pytest.mark.backends
@pytest.mark.parametrize(
    "way",
    [
        pytest.param("TrainingBackup", marks=pytest.mark.traced),
        pytest.param("BackupAndRestore", marks=pytest.mark.pytorch),
        pytest.param("ModelCheckpoint", marks=pytest.mark.pytorch),
    ],
)
def test_it_sees_the_same_data_and_has_the_same_losses(tmp_path, way, unbroken):
    """Resumed in the third epoch, a run once repeated the first epoch's data order."""
    with pytest.raises(KeyboardInterrupt):
        fit(distiller(), [keeper(way, tmp_path), Stop()])
    # A student with another start: everything must come from the file.
    resumed, options, again = distiller(start=9), {}, keeper(way, tmp_path)
    if way == "TrainingBackup":
        options["initial_epoch"] = again.restore(resumed)
    if way == "ModelCheckpoint":
        resumed.load_weights(tmp_path / f"{STOP}.weights.h5")
        options["initial_epoch"] = STOP
    history = fit(resumed, [again], **options)
    assert history.keys() == unbroken.keys()
    for name in history:
        np.testing.assert_allclose(history[name], unbroken[name][STOP:], rtol=1e-5)


def test_a_second_fit_does_not_repeat_the_first_order():
    seen = []

    class Watched(Rows):
        def batch(self, rows):
            seen.append(tuple(rows))
            return super().batch(rows)

    model, dataset = distiller(), Watched()
    orders = []
    for _ in range(2):
        seen.clear()
        model.fit(dataset, verbose=0)
        # Only the last five: the first batches may have been read before training.
        orders.append(tuple(seen[-5:]))
        assert sorted(i for rows in orders[-1] for i in rows) == list(range(10))
    assert orders[0] != orders[1]


def test_a_list_of_callbacks_made_by_the_user():
    """A callback for the data order was once prepended to it as to a plain list."""
    model, history = distiller(), keras.callbacks.History()
    callbacks = keras.callbacks.CallbackList([history], model=model)
    model.fit(Rows(), callbacks=callbacks, verbose=0)
    assert "loss" in history.history


def test_a_full_disk_is_an_error_and_the_last_good_file_stays(tmp_path):
    """A half-written file once replaced the last complete one."""
    model = distiller()
    backup = TrainingBackup(tmp_path)
    fit(model, [backup], epochs=1)
    files = sorted(path.name for path in tmp_path.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="epoch_2.*cannot be written.*untouched"):
            fit(model, [backup], initial_epoch=1, epochs=2)
        with pytest.raises(OSError, match="last.weights.h5' .* cannot be written"):
            model.save_weights(tmp_path / "last.weights.h5")
        with pytest.raises(OSError, match="all.keras' .* cannot be written"):
            model.save(tmp_path / "all.keras")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    assert backup.restore(distiller()) == 1


def test_a_folder_that_cannot_be_written_is_found_before_training(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot be written"):
        TrainingBackup(tmp_path / "file" / "backup")


def test_a_damaged_file_is_named_with_the_latest_one_that_is_whole(tmp_path):
    """Only "an older file" was advised, and one beside it named without a look."""
    backup = TrainingBackup(tmp_path)
    fit(distiller(), [backup], epochs=1)
    (first,) = tmp_path.iterdir()
    whole = first.read_bytes()
    first.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="epoch_1.*damaged.* a copy. .*to start anew"):
        backup.restore(distiller())
    for epoch, data in enumerate((whole, whole[:-1], whole[:900] + whole[901:]), 1):
        (tmp_path / f"epoch_{epoch}.weights.h5").write_bytes(data)
    # Newer, and no weights file at all.
    (tmp_path / "notes.weights.h5").write_text("")
    advice = (
        "epoch_1.weights.h5' is whole. .*the file and epoch_2.weights.h5, which is "
    )
    advice += "damaged, too, to go on from epoch_1.weights.h5, which is whole"
    with pytest.raises(ValueError, match=f"epoch_3.*{advice}"):
        backup.restore(distiller())
    with pytest.raises(ValueError, match="epoch_2.*damaged.*epoch_1.weights.h5' is wh"):
        distiller().load_weights(tmp_path / "epoch_2.weights.h5")


def test_a_file_of_another_model_is_named(tmp_path):
    backup = TrainingBackup(tmp_path)
    fit(distiller(), [backup], epochs=1)
    wide = [linear_model(seed, width=7) for seed in (1, 2)]
    other = BetaKDDistiller(*wide, TAIDEnergy(20), AnalyticBeta())
    other.compile(optimizer="adam")
    with pytest.raises(ValueError, match="epoch_1.weights.h5' does not hold the state"):
        backup.restore(other)


def test_a_file_is_there_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    with atomic_write(path) as draft:
        draft.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as draft:
        draft.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_parts_of_an_epoch_are_the_epoch():
    whole, parts = Rows(), EpochParts(Rows(), 2)
    for epoch in range(2):
        found = []
        for _ in range(2):
            found += [parts[i][0] for i in range(len(parts))]
            parts.on_epoch_end()
        expected = [whole[i][0] for i in range(len(whole))]
        np.testing.assert_array_equal(np.stack(found), np.stack(expected), str(epoch))
        whole.on_epoch_end()
    parts.start_epoch(3)
    whole.start_epoch(1)
    np.testing.assert_array_equal(parts[0][0], whole[2][0])
    with pytest.raises(ValueError, match="5 batches cannot be cut into 6"):
        EpochParts(Rows(), 6)
