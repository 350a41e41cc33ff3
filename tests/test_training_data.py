"""Every kind of data that `fit` and `evaluate` take, and what they refuse."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from plain_models import linear_model, token_batch
from tiny_models import tiny_gemma3, vqa_records

from keras_betakd import BetaKDDistiller, DistillationPreprocessor, ForwardKLEnergy
from keras_betakd.preprocessing.adapters import RecordBatches
from keras_betakd.preprocessing.batches import BatchFormatter, formatted


@pytest.fixture(scope="module")
def preprocessor():
    gemma3 = tiny_gemma3().preprocessor
    return DistillationPreprocessor(gemma3, gemma3, 6)


class RecordDataset(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        records = vqa_records(4)
        return {k: v[2 * index : 2 * index + 2] for k, v in records.items()}


class TorchRecords(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        records = vqa_records(4)
        return {
            "prompts": records["prompts"][index],
            "responses": records["responses"][index],
            "images": records["images"][index][0],
            "ids": records["ids"][index],
        }


def tf_records(ragged=False):
    records = vqa_records(4)
    images = np.stack([i[0] for i in records["images"]])
    if ragged:
        images = tf.RaggedTensor.from_row_splits(images, [0, 1, 2, 3, 4])
    tensors = {
        "prompts": records["prompts"],
        "responses": records["responses"],
        "images": images,
        "ids": records["ids"],
    }
    return tf.data.Dataset.from_tensor_slices(tensors).batch(2)


def batches_of(data, preprocessor, batch_size=None):
    formatter = BatchFormatter(preprocessor)
    dataset, y, weight = formatted(data, batch_size=batch_size, formatter=formatter)
    assert y is None and weight is None
    return list(dataset)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RecordDataset(),
        lambda: tf_records(),
        lambda: tf_records(ragged=True),
        lambda: tf_records().filter(lambda x: True),
        lambda: torch.utils.data.DataLoader(TorchRecords(), batch_size=2),
    ],
    ids=["py_dataset", "tf_data", "tf_ragged", "tf_unknown_size", "data_loader"],
)
def test_all_sources_give_the_same_batches(preprocessor, make):
    expected = batches_of(vqa_records(4), preprocessor, batch_size=2)
    received = batches_of(make(), preprocessor)
    assert len(received) == 2
    for one, other in zip(expected, received, strict=True):
        keras.tree.map_structure(np.testing.assert_array_equal, one, other)


def test_weights_travel_in_x(preprocessor):
    (batch,) = batches_of(vqa_records(2), preprocessor, batch_size=4)
    x, _, weight = batch
    np.testing.assert_array_equal(x["sample_weight"], weight)
    assert weight[0].tolist() == [1, 1, 0, 0, 0, 0]


def test_records_are_shuffled_each_epoch():
    records = {"prompts": list("abcdefgh"), "responses": list("ABCDEFGH")}
    keras.utils.set_random_seed(3)
    dataset = RecordBatches(records, batch_size=8, shuffle=True)
    first = dataset[0]
    dataset.on_epoch_end()
    second = dataset[0]
    assert first["prompts"] != second["prompts"]
    for batch in (first, second):
        assert sorted(batch["prompts"]) == list("abcdefgh")
        assert [p.upper() for p in batch["prompts"]] == batch["responses"]
    assert RecordBatches(records, batch_size=8)[0] == records


@pytest.mark.backends
@pytest.mark.traced
def test_fit_and_evaluate_on_raw_records():
    """Runs the three lines of the README end to end, with validation."""
    teacher, student = tiny_gemma3(width=16), tiny_gemma3()
    distiller = BetaKDDistiller(teacher, student, ForwardKLEnergy())
    distiller.compile(optimizer=keras.optimizers.AdamW(1e-2))
    frozen = [w.copy() for w in teacher.get_weights()]
    tower = student.backbone.vision_encoder.get_layer("image_encoder").get_weights()
    history = distiller.fit(
        vqa_records(6), batch_size=2, epochs=3, validation_split=1 / 3, verbose=0
    ).history
    assert history["loss"][-1] < history["loss"][0]
    assert len(history["val_forward_kl"]) == 3
    values = distiller.evaluate(vqa_records(3), batch_size=2, verbose=0)
    assert np.isfinite(values).all()
    logits = distiller.predict(vqa_records(3), batch_size=2, verbose=0)
    assert logits.shape == (3, 64, 160)
    for was, now in zip(frozen, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)
    now = student.backbone.vision_encoder.get_layer("image_encoder").get_weights()
    for was, is_now in zip(tower, now, strict=True):
        np.testing.assert_array_equal(was, is_now)


def test_answer_position_form_is_taken_as_it_is(preprocessor):
    model = tiny_gemma3()
    distiller = BetaKDDistiller(
        model, tiny_gemma3(), ForwardKLEnergy(), preprocessor=preprocessor
    )
    distiller.compile()
    x, y, weight = preprocessor(vqa_records(2))
    direct = distiller.evaluate(x, y, sample_weight=weight, verbose=0)
    raw = distiller.evaluate(vqa_records(2), verbose=0)
    np.testing.assert_allclose(direct, raw, rtol=1e-6)


def distiller():
    model = BetaKDDistiller(linear_model(1), linear_model(2), ForwardKLEnergy())
    model.compile()
    return model


def negative_weight(x, y, weight):
    weight[0, 0] = -1
    return x, y, weight


def nan_weight(x, y, weight):
    weight[0, 0] = np.nan
    return x, y, weight


def ignored_label_with_weight(x, y, weight):
    y[0, 1] = -100
    return x, y, weight


def weight_of_another_shape(x, y, weight):
    return x, y, weight[:, :2]


@pytest.mark.parametrize(
    "corrupt, message",
    [
        (negative_weight, "finite and not negative"),
        (nan_weight, "finite and not negative"),
        (ignored_label_with_weight, r"Label -100 at \(0, 1\) is no class"),
        (weight_of_another_shape, r"sample_weight of shape \(4, 2\)"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_bad_batches_are_refused(corrupt, message):
    with pytest.raises(ValueError, match=message):
        distiller().train_on_batch(*corrupt(*token_batch()))


@pytest.mark.backends
def test_ignored_labels_without_weight_are_harmless():
    """Labels out of range once gave different results on each backend."""
    x, y, weight = token_batch()
    expected = distiller().test_on_batch(x, y, weight)
    y[weight == 0] = -100
    np.testing.assert_array_equal(distiller().test_on_batch(x, y, weight), expected)


@pytest.mark.backends
def test_one_weight_an_example_is_that_of_all_its_labels():
    x, y, _ = token_batch()
    whole = np.array([1, 0, 2, 0], "float32")
    spread = np.repeat(whole[:, None], 3, axis=1)
    np.testing.assert_array_equal(
        distiller().test_on_batch(x, y, whole), distiller().test_on_batch(x, y, spread)
    )


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda d: d.fit(vqa_records(2), verbose=0), "Raw records need a preprocessor"),
        (lambda d: d.fit(iter([1]), verbose=0), "data has no labels"),
        (
            lambda d: d.fit(*token_batch()[:2], class_weight={0: 1.0}, verbose=0),
            "`class_weight` is not supported",
        ),
        (lambda d: d.fit(RecordDataset(), np.ones(4)), "have their labels under"),
        (lambda d: d.compile(loss="mse"), "expects probabilities"),
    ],
    ids=["no_preprocessor", "generator", "class_weight", "labels", "loss_name"],
)
def test_bad_calls_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(distiller())
