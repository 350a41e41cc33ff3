"""Labels are classes wherever they have a weight, on every path into the distiller."""

import keras
import keras_hub
import numpy as np
import pytest
import torch
from keras import ops
from marks import kept
from plain_models import CLASSES, linear_model, token_batch
from tiny_models import tiny_gemma3, tiny_gemma_text, vqa_records

from keras_betakd import (
    BetaKDDistiller,
    DistillationPreprocessor,
    DKDEnergy,
    ForwardKLEnergy,
)
from keras_betakd.head_loss import fused_head_loss


class Subclassed(keras.Model):
    """A model without an output shape before its first call."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(CLASSES)

    def call(self, x):
        return self.dense(x)


def compiled(student=None, **options):
    student = student or linear_model(2)
    model = BetaKDDistiller(linear_model(1), student, ForwardKLEnergy(), **options)
    model.compile(optimizer="sgd")
    return model


class Batches(keras.utils.PyDataset):
    def __init__(self, *batch):
        super().__init__()
        self.batch = batch

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.batch


def loader(x, y, weight):
    data = torch.utils.data.TensorDataset(*map(torch.tensor, (x, y, weight)))
    return torch.utils.data.DataLoader(data, batch_size=len(x))


PATHS = {
    "fit": lambda d, *b: d.fit(b[0], b[1], sample_weight=b[2], verbose=0),
    "evaluate": lambda d, *b: d.evaluate(b[0], b[1], sample_weight=b[2], verbose=0),
    "train_on_batch": lambda d, *b: d.train_on_batch(*b),
    "test_on_batch": lambda d, *b: d.test_on_batch(*b),
    "py_dataset": lambda d, *b: d.fit(Batches(*b), verbose=0),
    "data_loader": lambda d, *b: d.fit(loader(*b), verbose=0),
    "validation": lambda d, *b: d.fit(*token_batch()[:2], validation_data=b, verbose=0),
}


@pytest.mark.parametrize("student", [linear_model, Subclassed], ids=["linear", "own"])
@pytest.mark.parametrize("path", PATHS)
def test_a_label_beyond_the_classes_is_refused(path, student):
    """JAX once trained on another class, PyTorch ended in a bare IndexError."""
    x, y, weight = token_batch()
    y[1, 1] = CLASSES
    model = compiled(Subclassed() if student is Subclassed else None)
    message = rf"Label {CLASSES} at \(1, 1\) .*whole numbers from 0 to {CLASSES - 1}"
    with pytest.raises(ValueError, match=message):
        PATHS[path](model, x, y, weight)
    y[1, 1], y[weight == 0] = CLASSES - 1, 1000
    PATHS[path](compiled(Subclassed() if student is Subclassed else None), x, y, weight)


def at_first(value):
    def change(y):
        y = y.astype("float64")
        y[0, 0] = value
        return y

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (at_first(np.nan), r"Label nan at \(0, 0\)"),
        (at_first(np.inf), r"Label inf at \(0, 0\)"),
        (at_first(1.7), r"Label 1.7 at \(0, 0\)"),
        (at_first(-1), r"Label -1.0 at \(0, 0\)"),
        (lambda y: y == 1, "labels of type bool"),
        (lambda y: y.astype(str), "labels of type <U"),
        (lambda y: np.eye(CLASSES)[y], r"one-hot over the 5 classes: pass `labels.arg"),
        (lambda y: y[:, 0], r"need labels of shape \(B, 3\).*Received.*\(4,\)"),
        (lambda y: y[:, :2], r"need labels of shape \(B, 3\).*Received.*\(4, 2\)"),
        (lambda y: {"label": y}, "one array of class ids.*a dict"),
        (lambda y: None, "The data has no labels"),
    ],
)
def test_what_is_no_class_id_is_refused(change, message):
    x, y, _ = token_batch()
    with pytest.raises(ValueError, match=message):
        compiled().fit(x, change(y), verbose=0)


def test_one_hot_labels_of_a_classifier_are_refused():
    def mlp():
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(CLASSES)])

    model = BetaKDDistiller(mlp(), mlp(), ForwardKLEnergy())
    model.compile()
    x, y = np.ones((6, 4), "float32"), np.arange(6) % CLASSES
    with pytest.raises(ValueError, match=r"labels.*\(6, 5\), which look one-hot"):
        model.fit(x, np.eye(CLASSES)[y], verbose=0)
    for labels in (y, y[:, None], y.astype("float32"), list(y)):
        model.test_on_batch(x, labels)


@pytest.mark.backends
def test_whole_floats_are_class_ids_as_in_keras():
    x, y, weight = token_batch()
    expected = compiled().test_on_batch(x, y, weight)
    floats = np.where(weight > 0, y, np.nan)
    np.testing.assert_allclose(compiled().test_on_batch(x, floats, weight), expected)


def test_only_the_common_classes_are_classes():
    """`vocabulary_size` cuts the logits, so labels behind it are no class."""
    x, y, weight = token_batch()
    y = y % 3
    model = compiled(vocabulary_size=3)
    model.test_on_batch(x, y, weight)
    y[0, 0] = 3
    with pytest.raises(ValueError, match="whole numbers from 0 to 2"):
        model.test_on_batch(x, y, weight)


@pytest.mark.parametrize("fused", [True, False])
def test_answer_positions_name_the_record(fused):
    teacher, student = tiny_gemma3(), tiny_gemma3()
    preprocessor = DistillationPreprocessor(
        teacher.preprocessor, student.preprocessor, 6
    )
    model = BetaKDDistiller(
        teacher, student, ForwardKLEnergy(), preprocessor=preprocessor, fused=fused
    )
    model.compile()
    x, y, weight = preprocessor(vqa_records(2))
    y[1, 0] = 160
    with pytest.raises(ValueError, match=r"Label 160 at \(1, 0\) of record 'q1' \(num"):
        model.fit(x, y, sample_weight=weight, verbose=0)
    for key in ("teacher", "student_positions"):
        other = {k if k != key else f"{key}s": v for k, v in x.items()}
        with pytest.raises(ValueError, match=f"no key '{key}s'; did you mean '{key}'"):
            model.fit(other, y, sample_weight=weight, verbose=0)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused():
    """Ids beyond the embedding are read from its last row on JAX."""
    model = tiny_gemma_text()
    config = {**model.backbone.get_config(), "vocabulary_size": 100}
    backbone = keras_hub.models.GemmaBackbone.from_config(config)
    small = keras_hub.models.GemmaCausalLM(backbone, model.preprocessor)
    bare = keras_hub.models.GemmaCausalLM(backbone)
    pair = DistillationPreprocessor(model.preprocessor, model.preprocessor)
    for student, options in ((small, {}), (bare, {"preprocessor": pair})):
        with pytest.raises(
            ValueError, match=r"1\d\d tokens, .* embedding has 100 rows"
        ):
            BetaKDDistiller(
                model, student, ForwardKLEnergy(), vocabulary_size=90, **options
            )


def test_raw_records_need_models_whose_rows_are_known():
    """A plain model was taken, and `fit` failed with an attribute it does not have."""
    model = tiny_gemma_text()
    pair = DistillationPreprocessor(model.preprocessor, model.preprocessor)
    plain = linear_model(0)
    for role, both in {"student": (model, plain), "teacher": (plain, model)}.items():
        with pytest.raises(ValueError, match=f"known of this {role} but its logits"):
            BetaKDDistiller(*both, ForwardKLEnergy(), preprocessor=pair)


def head_loss(labels, energies, coefficients=None, **options):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype("float32") for shape in ((3, 4), (5, 4))]
    rows, kernel = map(ops.convert_to_tensor, arrays)
    if coefficients is None:
        coefficients = np.full((1 + len(energies), 3), 0.5, "float32")
    labels = ops.convert_to_tensor(labels)
    return fused_head_loss(
        rows, kernel, rows, kernel, labels, coefficients, energies, **options
    )


@pytest.mark.backends
@pytest.mark.parametrize("label", kept([5, -1, 10**6], 5))
@pytest.mark.parametrize("tile_rows", kept([None, 1], 1))
def test_the_fused_head_gives_nan_for_a_label_that_is_no_class(label, tile_rows):
    """It once took another class on JAX and raised an IndexError on PyTorch."""
    energies = {"kl": ForwardKLEnergy(), "dkd": DKDEnergy()}
    loss = head_loss([0, label, 4], energies, tile_rows=tile_rows)
    sound = head_loss([0, 1, 4], energies, tile_rows=tile_rows)
    task, dkd = map(ops.convert_to_numpy, (loss.task, loss.energies["dkd"]))
    assert np.isnan(ops.convert_to_numpy(loss.total))
    assert np.isnan(task).tolist() == np.isnan(dkd).tolist() == [False, True, False]
    assert np.isfinite(ops.convert_to_numpy(loss.energies["kl"])).all()
    assert np.isfinite(ops.convert_to_numpy(sound.total))
    np.testing.assert_allclose(task[[0, 2]], ops.convert_to_numpy(sound.task)[[0, 2]])


@pytest.mark.backends
def test_a_row_without_a_cross_entropy_needs_no_label():
    coefficients = np.array([[0.5, 0, 0.5], [1, 1, 1]], "float32")
    loss = head_loss([0, -100, 4], {"kl": ForwardKLEnergy()}, coefficients)
    assert np.isfinite(ops.convert_to_numpy(loss.total))


def test_no_rows_are_refused():
    empty, kernel = ops.zeros((0, 4)), ops.ones((5, 4))
    with pytest.raises(ValueError, match="at least one row"):
        fused_head_loss(
            empty,
            kernel,
            empty,
            kernel,
            ops.zeros((0,), "int32"),
            ops.zeros((1, 0)),
            {},
        )
