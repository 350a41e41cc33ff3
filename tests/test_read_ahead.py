"""Batches that are preprocessed in threads are those that one thread would make."""

import concurrent.futures
import itertools
import threading
import time

import keras
import keras_hub
import numpy as np
import pytest
from tiny_models import random_image, tiny_gemma3, vqa_records

from keras_betakd import (
    BetaKDDistiller,
    CosineProbsEnergy,
    DistillationPreprocessor,
    FixedBeta,
)
from keras_betakd.data import load_vqa
from keras_betakd.preprocessing.read_ahead import ReadAhead

COUNT = 10


def test_items_come_in_order_and_wait_in_a_bounded_queue():
    read, made, most, lock = [], [], [0], threading.Lock()

    def make(value, place):
        time.sleep(0.002 * (place % 3))  # so that later ones are ready first
        with lock:
            made.append(place)
        return value

    ahead = ReadAhead(lambda i: read.append(i) or 10 * i, make, workers=3, size=4)
    for i in range(COUNT):
        assert ahead.take(i, range(i + 1, COUNT)) == 10 * i
        most[0] = max(most[0], len(made) - i - 1)
    ahead.close()
    assert read == list(range(COUNT)) and sorted(made) == read
    assert most[0] <= 4


def test_an_error_is_raised_where_its_item_is_taken():
    def make(value, place):
        if place == 2:
            raise ValueError("record 2")
        return value

    ahead = ReadAhead(lambda i: i, make, workers=2, size=3)
    assert [ahead.take(i, range(i + 1, 5)) for i in range(2)] == [0, 1]
    with pytest.raises(ValueError, match="record 2"):
        ahead.take(2, range(3, 5))
    assert ahead.take(3, [4]) == 3
    ahead.close()


def test_what_was_read_ahead_of_another_pass_is_dropped():
    current = ["first"]
    ahead = ReadAhead(lambda i: (current[0], i), lambda x, i: x, workers=1, size=3)
    assert ahead.take(0, range(1, 4)) == ("first", 0)
    ahead.clear()
    current[0] = "second"
    assert ahead.take(1, range(2, 4)) == ("second", 1)
    ahead.close()


def records():
    found = vqa_records(4)
    found = {key: list(values) * 3 for key, values in found.items()}
    found["ids"] = [f"r{i}" for i in range(12)]
    return found


def distiller(**options):
    keras.utils.set_random_seed(0)
    teacher, student = tiny_gemma3(width=16), tiny_gemma3()
    preprocessor = DistillationPreprocessor(
        teacher.preprocessor, student.preprocessor, 6, **options
    )
    model = BetaKDDistiller(
        *(teacher, student, CosineProbsEnergy(), FixedBeta()),
        preprocessor=preprocessor,
    )
    model.compile(optimizer=keras.optimizers.SGD(0.01))
    return model


def trained(model, data, **options):
    keras.utils.set_random_seed(1)
    options = {"epochs": 2, "verbose": 0, "validation_data": records(), **options}
    history = model.fit(data, batch_size=3, **options).history
    return history, [keras.ops.convert_to_numpy(v) for v in model.student.variables]


def reading_threads():
    return {t for t in threading.enumerate() if t.name.startswith("keras_betakd_")}


@pytest.mark.parametrize("use", ["fit", "evaluate", "predict"])
def test_no_thread_is_left(use):
    """`predict` left those that had read for it until they were collected."""
    before = reading_threads()
    model = distiller(workers=2, max_queue_size=2)
    run = getattr(model, use)
    run(records(), batch_size=3, verbose=0)
    assert reading_threads() <= before


def test_training_does_not_depend_on_the_number_of_threads():
    expected, weights = trained(distiller(workers=0), records())
    found, theirs = trained(distiller(workers=3, max_queue_size=2), records())
    assert found == expected
    for ours, other in zip(weights, theirs, strict=True):
        np.testing.assert_array_equal(ours, other)


@pytest.mark.backends
def test_a_record_that_is_refused_ends_its_own_step():
    """Read ahead, it must not take the steps before it away, nor name another one."""
    data = records()
    data["responses"][7] = None  # in the third of four batches
    values = []
    for workers in (0, 2):
        model = distiller(workers=workers, max_queue_size=4)
        keras.utils.set_random_seed(1)
        with pytest.raises(ValueError, match="r7"):
            model.fit(data, batch_size=3, shuffle=False, verbose=0)
        assert int(model.optimizer.iterations) == 2
        values.append([keras.ops.convert_to_numpy(v) for v in model.student.variables])
    for ours, other in zip(*values, strict=True):
        np.testing.assert_array_equal(ours, other)


@pytest.mark.parametrize("form", ["batches", "records", "steps"])
def test_an_error_of_the_data_is_raised_where_it_was_read_ahead(form):
    """A generator ends with its error: training ended there, as if all were well."""

    def batches():
        data = records()
        for number in range(4):
            if number == 3:
                raise OSError("connection lost")
            rows = range(3 * number, 3 * number + 3)
            yield {key: [values[row] for row in rows] for key, values in data.items()}

    def rows():
        for row in range(12):
            yield {"image": random_image(0), "question": "?", "answer": "red"}
            if row == 9:
                raise OSError("connection lost")

    options = {"steps_per_epoch": 4} if form == "steps" else {}
    for workers in (0, 2):
        model = distiller(workers=workers, max_queue_size=4)
        data = load_vqa(rows()) if form == "records" else batches()
        size = 3 if form == "records" else None
        with pytest.raises(OSError, match="connection lost"):
            model.fit(data, batch_size=size, verbose=0, **options)
        assert int(model.optimizer.iterations) == 3
        data = load_vqa(rows()) if form == "records" else batches()
        with pytest.raises(OSError, match="connection lost"):
            model.evaluate(data, batch_size=size, verbose=0)


def test_a_generator_is_not_read_beyond_the_epoch():
    """What a second `fit` goes on with must still be there."""
    given = []

    def batches():
        data, number = records(), 0
        while True:
            rows = [(number + i) % 12 for i in range(3)]
            given.append(number)
            yield {key: [values[row] for row in rows] for key, values in data.items()}
            number += 3

    model = distiller(workers=2, max_queue_size=4)
    iterator = batches()
    model.fit(iterator, steps_per_epoch=2, epochs=2, verbose=0)
    assert int(model.optimizer.iterations) == 4
    assert len(given) <= 5  # Keras asks whether there is more


def test_data_of_unknown_size_is_read_to_its_end():
    """Where it ends is found out by the thread that reads ahead."""

    def batches(count):
        data = records()
        for number in range(count):
            rows = [(3 * number + i) % 12 for i in range(3)]
            yield {key: [values[row] for row in rows] for key, values in data.items()}

    model = distiller(workers=2, max_queue_size=4)
    model.fit(batches(5), verbose=0)
    assert int(model.optimizer.iterations) == 5


def test_threads_do_not_build_one_preprocessor_at_once():
    """keras-hub's refused the second build: now and then, a training did not begin."""
    tokenizer = tiny_gemma3().preprocessor.tokenizer
    entered = itertools.count()

    class Slow(keras_hub.models.Gemma3CausalLMPreprocessor):
        def build(self, input_shape):
            time.sleep(0.1 * (1 + next(entered)))  # the second ends after the first
            super().build(input_shape)

    preprocessor = Slow(tokenizer, sequence_length=64)
    both = DistillationPreprocessor(preprocessor, preprocessor, 6)
    texts = {"prompts": ["one two"], "responses": ["three"]}
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first, second = pool.map(both, [texts] * 2)
    np.testing.assert_array_equal(first[1], second[1])
    assert next(entered) == 2  # this one, and the copy of it that packs


@pytest.mark.parametrize(
    "options",
    [{"workers": -1}, {"workers": "2"}, {"workers": True}, {"max_queue_size": 0}],
)
def test_a_queue_that_cannot_be_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        distiller(**options)
