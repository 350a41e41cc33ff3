"""Damaged weights files: one error that names the file, and nothing changes.

44 of 150 bit flips were once restored with other numbers, and a refused restore left
the student half overwritten.
"""

import os
import pathlib
import random
import shutil
import zipfile

import h5py
import keras
import numpy as np
import pytest
from keras import ops
from plain_models import linear_model, token_batch

from keras_betakd import (
    BetaKDDistiller,
    ForwardKLEnergy,
    TrainingBackup,
    load_student_weights,
)
from keras_betakd.distillation.weights_files import END_SIZE

X, Y, WEIGHT = token_batch()


def distiller(seed=1, units=()):
    keras.utils.set_random_seed(seed)
    student = linear_model(seed + 1)
    if units:
        layers = [keras.layers.Dense(n) for n in units]
        student = keras.Sequential([keras.Input((3, 4)), *layers])
    model = BetaKDDistiller(linear_model(1), student, ForwardKLEnergy())
    model.compile(optimizer=keras.optimizers.Adam(0.1))
    return model


def state_of(model):
    variables = [*model.variables, *model.optimizer.variables]
    return [ops.convert_to_numpy(v) for v in variables]


def expect_unchanged(model, before):
    for was, now in zip(before, state_of(model), strict=True):
        np.testing.assert_array_equal(was, now)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "a.weights.h5"
    model = distiller()
    model.train_on_batch(X, Y, WEIGHT)
    model.save_weights(path)
    return path


def ways(tmp_path, content):
    """The ways to load a file of these bytes: the file, and what loads it."""
    path = tmp_path / "a.weights.h5"
    path.write_bytes(content)
    folder = tmp_path / "backup"
    folder.mkdir(exist_ok=True)
    shutil.copy(path, folder / "epoch_3.weights.h5")
    return (
        lambda model: model.load_weights(path),
        lambda model: TrainingBackup(folder).restore(model),
        lambda model: load_student_weights(model.student, path),
    )


def test_bit_flips(tmp_path, good):
    model, content = distiller(seed=9), good.read_bytes()
    before, generator = state_of(model), random.Random(0)
    for _ in range(40):
        damaged, bit = bytearray(content), generator.randrange(8 * len(content))
        if bit // 8 >= len(content) - END_SIZE:
            continue  # in the digest itself, which the next test is about
        damaged[bit // 8] ^= 1 << bit % 8
        for load in ways(tmp_path, damaged):
            with pytest.raises(ValueError, match=r"(a|epoch_3)\.weights\.h5'.*damaged"):
                load(model)
    expect_unchanged(model, before)


def test_flips_in_the_digest_change_no_number(tmp_path, good):
    """One in its mark leaves a file without a digest, whose numbers are right."""
    content = good.read_bytes()
    expected = distiller()
    expected.load_weights(good)
    for position in range(len(content) - END_SIZE, len(content), 5):
        damaged = bytearray(content)
        damaged[position] ^= 1
        model = distiller(seed=9)
        try:
            ways(tmp_path, damaged)[0](model)
        except ValueError as error:
            assert "damaged" in str(error)
        else:
            expect_unchanged(model, state_of(expected))


@pytest.mark.parametrize("size", [0, 1, 100, -END_SIZE - 1])
def test_truncated_files(tmp_path, good, size):
    model = distiller(seed=9)
    before = state_of(model)
    for load in ways(tmp_path, good.read_bytes()[:size]):
        with pytest.raises(ValueError, match=r"(a|epoch_3)\.weights\.h5'"):
            load(model)
    expect_unchanged(model, before)


def test_a_folder_and_a_file_that_is_not_there(tmp_path):
    (tmp_path / "epoch_1.weights.h5").mkdir()
    model = distiller()
    with pytest.raises(ValueError, match=r"epoch_1\.weights\.h5'.*It is a folder"):
        TrainingBackup(tmp_path).restore(model)
    with pytest.raises(FileNotFoundError, match="none.weights.h5"):
        model.load_weights(tmp_path / "none.weights.h5")


def without_digest(path):
    content = path.read_bytes()
    path.write_bytes(content[:-END_SIZE])
    return path


@pytest.mark.parametrize("units", [(6, 5), (5, 5, 5)])
def test_a_file_of_another_model_changes_nothing(tmp_path, units):
    """With a digest and, as older versions wrote it, without."""
    other = distiller(units=units)
    other.save_weights(tmp_path / "a.weights.h5")
    model = distiller(seed=9, units=(5, 5))
    before = state_of(model)
    for _ in range(2):
        with pytest.raises(ValueError, match="a.weights.h5' cannot be loaded"):
            model.load_weights(tmp_path / "a.weights.h5")
        without_digest(tmp_path / "a.weights.h5")
    expect_unchanged(model, before)


def test_a_backup_of_another_optimizer_is_refused(tmp_path):
    """Keras alone warns, and goes on without the optimizer's state."""
    model = distiller()
    backup = TrainingBackup(tmp_path)
    backup.set_model(model)
    backup.on_epoch_end(0)
    other = distiller(seed=9)
    other.compile(optimizer=keras.optimizers.SGD(0.1))
    before = state_of(other)
    with pytest.raises(ValueError, match="variables of the optimizer"):
        backup.restore(other)
    expect_unchanged(other, before)


def test_keras_reads_the_file_and_we_read_that_of_keras(tmp_path, good):
    with h5py.File(good) as file:
        assert "student" in file
    net = linear_model(3)
    net.compile(keras.optimizers.Adam(0.1), "mse")
    net.optimizer.build(net.trainable_variables)
    path = tmp_path / "epoch_2.weights.h5"
    net.save_weights(path)
    again = linear_model(4)
    again.compile(keras.optimizers.Adam(0.1), "mse")
    assert TrainingBackup(tmp_path).restore(again) == 2
    for was, now in zip(net.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)


@pytest.mark.parametrize("kind", ["external", "soft", "virtual", "data"])
def test_links_to_other_files_are_not_followed(tmp_path, good, kind):
    path, secret = tmp_path / "a.weights.h5", tmp_path / "secret.h5"
    shutil.copy(good, path)
    shutil.copy(good, secret)
    without_digest(path)
    name = "student/layers/dense/vars/0"
    with h5py.File(path, "a") as file:
        shape, dtype = file[name].shape, file[name].dtype
        del file[name]
        if kind == "external":
            file[name] = h5py.ExternalLink(str(secret), name)
        elif kind == "soft":
            file[name] = h5py.SoftLink("/student/layers/dense/vars/1")
        elif kind == "data":
            external = [(str(secret), 0, h5py.h5f.UNLIMITED)]
            file.create_dataset(name, shape, dtype, external=external)
        else:
            layout = h5py.VirtualLayout(shape, dtype)
            layout[:] = h5py.VirtualSource(str(secret), name, shape)
            file.create_virtual_dataset(name, layout)
    model = distiller(seed=9)
    before = state_of(model)
    with pytest.raises(ValueError, match="a.weights.h5'.*not followed"):
        model.load_weights(path)
    expect_unchanged(model, before)


def test_archives_carry_checksums(tmp_path):
    """A flip is an error, or in a byte that stands for nothing, such as a date."""
    model, path = distiller(), tmp_path / "a.keras"
    model.save(path)
    content, generator, refused = path.read_bytes(), random.Random(1), 0
    for _ in range(10):
        damaged, bit = bytearray(content), generator.randrange(8 * len(content))
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        other = distiller(seed=9)
        before = state_of(other)
        try:
            other.load_weights(path)
            expect_unchanged(other, state_of(model))
        except ValueError as error:
            assert "a.keras' cannot be loaded" in str(error)
            expect_unchanged(other, before)
            refused += 1
        try:
            loaded = keras.saving.load_model(path)
        except (ValueError, KeyError, zipfile.BadZipFile):
            continue
        expect_unchanged(loaded, state_of(model))
    assert refused >= 5


def test_other_threads_may_draw_while_a_file_is_verified(monkeypatch):
    """The state of a generator that reads data is not held back."""
    import threading

    from keras_betakd.distillation.weights_files import rehearsed

    ours, theirs = keras.Variable(1.0), keras.Variable(1.0)
    with rehearsed() as assigned:
        ours.assign(2.0)
        thread = threading.Thread(target=theirs.assign, args=(2.0,))
        thread.start()
        thread.join()
    assert assigned == {id(ours)}
    assert (float(ours), float(theirs)) == (1.0, 2.0)
    ours.assign(3.0)
    assert float(ours) == 3.0


def test_no_draft_is_left(tmp_path):
    model = distiller()
    model.save_weights(tmp_path / "a.weights.h5")
    model.save_weights(pathlib.Path(tmp_path) / "a.weights.h5")
    assert os.listdir(tmp_path) == ["a.weights.h5"]
