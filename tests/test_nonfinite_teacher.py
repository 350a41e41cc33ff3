"""A teacher with NaN or infinity in some rows: they are left out and reported."""

import warnings

import keras
import numpy as np
import pytest
from keras import ops
from tiny_families import tiny_text

from keras_betakd import (
    BetaKDDistiller,
    FixedBeta,
    ForwardKLEnergy,
    InstanceBeta,
    TaskBeta,
)

pytestmark = pytest.mark.backends

BAD = 3  # the id that makes the teacher overflow
IDS = np.array([[0, 1, 2], [1, BAD, 0], [2, 2, 1], [0, BAD, BAD]])
LABELS = np.array([[1, 2, 3], [0, 1, 2], [3, 3, 0], [1, 1, 2]])


def lookup(table):
    """A model whose logits are the rows of a table."""
    inputs = keras.Input((3,), dtype="int32")
    outputs = keras.layers.Embedding(*table.shape)(inputs)
    model = keras.Model(inputs, outputs)
    model.layers[-1].set_weights([table.astype("float32")])
    return model


def tables():
    rng = np.random.default_rng(1)
    return rng.normal(size=(4, 5)), rng.normal(size=(4, 5))


def kl(p, q):
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (p, q))
    return (np.exp(p) * (p - q)).sum(-1)


@pytest.mark.parametrize(
    "value", [pytest.param(np.nan, marks=pytest.mark.traced), np.inf, -np.inf]
)
def test_energy_is_the_mean_over_the_rows_that_are_finite(value):
    teacher, student = tables()
    finite = IDS != BAD
    expected = kl(teacher[IDS], student[IDS])
    expected = np.mean([e[s].mean() for e, s in zip(expected, finite, strict=True)])
    teacher[BAD] = value
    distiller = BetaKDDistiller(
        lookup(teacher), lookup(student), ForwardKLEnergy(), FixedBeta(1.0)
    )
    distiller.compile(optimizer=keras.optimizers.SGD(0.1))
    with pytest.warns(RuntimeWarning, match="at 3 answer tokens in this evaluation"):
        found = distiller.evaluate(IDS, LABELS, verbose=0, return_dict=True)
    assert found["forward_kl"] == pytest.approx(expected, rel=1e-5)
    with pytest.warns(RuntimeWarning, match=r"epoch 2, the last in batch 1 \(counted"):
        distiller.fit(IDS, LABELS, batch_size=2, shuffle=False, epochs=2, verbose=0)
    for weight in distiller.student.weights:
        assert np.isfinite(ops.convert_to_numpy(weight)).all()


def test_one_excluded_class_is_not_counted_as_nonfinite():
    teacher, student = tables()
    teacher[:, 4] = student[:, 4] = -np.inf
    distiller = BetaKDDistiller(lookup(teacher), lookup(student), ForwardKLEnergy())
    distiller.compile()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found = distiller.evaluate(IDS, LABELS, verbose=0, return_dict=True)
    expected = kl(teacher[IDS][..., :4], student[IDS][..., :4]).mean()
    assert found["forward_kl"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "beta",
    [
        pytest.param(TaskBeta, marks=pytest.mark.traced),
        pytest.param(InstanceBeta, marks=pytest.mark.pytorch),
    ],
)
def test_a_model_that_overflows_behind_one_word(beta):
    """With the fused head; the word that overflows is in the second of two batches."""
    teacher, student = tiny_text("Llama", width=12), tiny_text("Llama")
    records = {"prompts": ["what color", "a zebra"], "responses": ["red", "yes"]}
    embedding = teacher.backbone.token_embedding.embeddings
    table = ops.convert_to_numpy(embedding).copy()
    common = set(np.ravel(teacher.preprocessor.tokenizer("what color red")))
    (word,) = [
        i
        for i in np.ravel(teacher.preprocessor.tokenizer("a zebra"))
        if i not in common
    ][-1:]
    table[int(word)] = np.nan
    embedding.assign(table)
    distiller = BetaKDDistiller(teacher, student, ForwardKLEnergy(), beta())
    distiller.compile(optimizer=keras.optimizers.SGD(0.1))
    with pytest.warns(RuntimeWarning, match="epoch 1, the last in batch 1"):
        history = distiller.fit(
            records, batch_size=1, shuffle=False, epochs=1, verbose=0
        ).history
    assert np.isfinite([values[0] for values in history.values()]).all()
    for weight in distiller.trainable_weights:
        assert np.isfinite(ops.convert_to_numpy(weight)).all()
