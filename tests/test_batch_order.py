"""`fit` trains the same batches in the same order, on every backend and in every epoch.

Keras reads the first batches of a data set to build a model or to find its shapes, on
some backends more of them than on others. The first epoch over a `tf.data.Dataset` or a
`DataLoader` once began at batch 1 or 2 on JAX and TensorFlow, and where it shuffled,
whole batches were not trained on.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from marks import kept
from plain_models import CLASSES

from keras_betakd import BetaKDDistiller, ForwardKLEnergy, TrainingBackup
from keras_betakd.data import EpochDataset, EpochParts

ROWS, SIZE = 10, 2
X = np.arange(ROWS, dtype="float32")[:, None]
Y = np.arange(ROWS) % CLASSES
ALL = list(range(ROWS))


class Recorder(keras.layers.Layer):
    """Keeps the rows that were trained on, in order: what the student really saw."""

    def __init__(self):
        super().__init__()
        self.rows = self.add_weight(
            shape=(64,), initializer="zeros", trainable=False, name="rows"
        )

    def call(self, x, training=None):
        if training:
            seen = keras.ops.concatenate([self.rows, x[:, 0] + 1])
            self.rows.assign(seen[-64:])
        return x

    def compute_output_shape(self, shape):
        return shape

    def seen(self):
        rows = keras.ops.convert_to_numpy(self.rows)
        return [int(i) - 1 for i in rows if i > 0]


def mlp(recorder=None):
    layers = [keras.Input((1,)), *([recorder] if recorder else [])]
    return keras.Sequential([*layers, keras.layers.Dense(CLASSES)])


def distiller(**options):
    keras.utils.set_random_seed(0)
    recorder = Recorder()
    model = BetaKDDistiller(mlp(), mlp(recorder), ForwardKLEnergy())
    model.compile(optimizer=keras.optimizers.SGD(1e-3), **options)
    return model, recorder


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return ROWS // SIZE

    def __getitem__(self, index):
        rows = slice(SIZE * index, SIZE * index + SIZE)
        return X[rows], Y[rows]


class Shuffled(EpochDataset):
    """A data set of the library's own kind; the last of its batches has one row."""

    def __init__(self, **options):
        super().__init__(ALL, seed=3, **options)
        self.start_epoch(0)

    def cut(self, generator):
        rows = generator.permutation(ROWS)
        return [rows[:3], rows[3:6], rows[6:9], rows[9:]]

    def batch(self, rows):
        return X[rows], Y[rows]


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


def tf_data(shuffle=False):
    data = tf.data.Dataset.from_tensor_slices((X, Y))
    return (data.shuffle(ROWS) if shuffle else data).batch(SIZE)


def loader(shuffle=False):
    data = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    return torch.utils.data.DataLoader(data, SIZE, shuffle=shuffle)


def generator(passes=1):
    for _ in range(passes):
        for i in range(0, ROWS, SIZE):
            yield X[i : i + SIZE], Y[i : i + SIZE]


SOURCES = {
    "py_dataset": Batches,
    "workers": lambda: Batches(workers=2),
    "tf_data": tf_data,
    "tf_unknown_size": lambda: tf_data().filter(lambda x, y: True),
    "data_loader": loader,
    "stream": lambda: torch.utils.data.DataLoader(Stream(), SIZE),
}


@pytest.mark.backends
@pytest.mark.traced
@pytest.mark.parametrize("source", kept(SOURCES, "py_dataset", "tf_data"))
def test_every_epoch_is_whole_and_begins_with_the_first_batch(source):
    """With a metric, which Keras builds from a batch, and with validation."""
    model, recorder = distiller(weighted_metrics=["sparse_categorical_accuracy"])
    make = SOURCES[source]
    history = model.fit(
        make(), epochs=2, verbose=0, shuffle=False, validation_data=make()
    ).history
    assert recorder.seen() == ALL + ALL
    assert len(history["val_loss"]) == 2


class Counted(Batches):
    def __init__(self):
        super().__init__()
        self.read = []

    def __getitem__(self, index):
        self.read.append(index)
        return super().__getitem__(index)


@pytest.mark.backends
def test_a_batch_that_keras_looks_at_is_not_prepared_twice():
    """Each look of Keras once read the images of a batch again."""
    data = Counted()
    model, _ = distiller()
    model.fit(data, epochs=1, verbose=0, shuffle=False)
    assert data.read == list(range(ROWS // SIZE))


@pytest.mark.backends
@pytest.mark.parametrize("make", [tf_data, loader], ids=["tf_data", "data_loader"])
def test_data_that_shuffles_itself_gives_every_row_once(make):
    model, recorder = distiller()
    model.fit(make(shuffle=True), epochs=2, verbose=0)
    first, second = recorder.seen()[:ROWS], recorder.seen()[ROWS:]
    assert sorted(first) == sorted(second) == ALL


@pytest.mark.backends
@pytest.mark.parametrize(
    "make",
    [Shuffled, lambda: Shuffled(workers=2), lambda: EpochParts(Shuffled(), 3)],
    ids=["data_set", "workers", "parts"],
)
def test_own_data_sets_give_their_epochs_also_where_sizes_differ(make):
    """Keras remembers the size of the first epoch: a larger one once lost batches."""
    expected, epochs = [], 3
    data = Shuffled()
    for epoch in range(1 if isinstance(make(), EpochParts) else epochs):
        data.start_epoch(epoch)
        expected += [int(i) for b in range(len(data)) for i in data[b][0][:, 0]]
    model, recorder = distiller()
    model.fit(make(), epochs=epochs, verbose=0)
    assert recorder.seen() == expected


@pytest.mark.backends
@pytest.mark.parametrize("source", SOURCES)
def test_steps_per_epoch_divide_a_pass(source):
    """A pass of five batches in epochs of two: 2, 2, 1, and the next pass."""
    model, recorder = distiller()
    data = SOURCES[source]()
    model.fit(data, epochs=6, steps_per_epoch=2, verbose=0, shuffle=False)
    assert recorder.seen() == ALL + ALL


@pytest.mark.backends
def test_a_pass_keeps_its_order_over_its_epochs():
    """Each epoch once had an order of its own, so that a pass missed rows."""
    model, recorder = distiller()
    model.fit(Shuffled(), epochs=6, steps_per_epoch=2, verbose=0)  # four batches
    for start in range(0, 3 * ROWS, ROWS):
        assert sorted(recorder.seen()[start : start + ROWS]) == ALL


@pytest.mark.backends
def test_a_generator_is_read_on_from_epoch_to_epoch():
    model, recorder = distiller()
    model.fit(generator(2), epochs=5, steps_per_epoch=2, verbose=0)
    assert recorder.seen() == ALL + ALL
    with pytest.raises(ValueError, match="generator .* cannot be started again"):
        model.fit(generator(), epochs=2, verbose=0)


@pytest.mark.parametrize("steps", [None, pytest.param(2, marks=pytest.mark.backends)])
@pytest.mark.parametrize("source", kept([*SOURCES, "data_set"], "tf_data", "data_set"))
def test_a_resumed_training_sees_what_is_left(tmp_path, source, steps):
    make = {**SOURCES, "data_set": Shuffled}[source]
    options = {"steps_per_epoch": steps, "verbose": 0, "shuffle": source == "workers"}
    whole, recorder = distiller()
    whole.fit(make(), epochs=4, **options)
    expected = recorder.seen()
    first, _ = distiller()
    first.fit(make(), epochs=2, callbacks=[TrainingBackup(tmp_path)], **options)
    second, recorder = distiller()
    backup = TrainingBackup(tmp_path)
    epoch = backup.restore(second)
    second.fit(make(), epochs=4, initial_epoch=epoch, callbacks=[backup], **options)
    assert recorder.seen() == expected
