"""The distiller takes Keras' own arguments in Keras' order, and few of its own."""

import inspect

import keras
import numpy as np
import pytest
from plain_models import linear_model, token_batch
from tiny_models import tiny_gemma_text

import keras_betakd
from keras_betakd import BetaKDDistiller, FixedBeta, ForwardKLEnergy, TaskBeta


def distiller(**options):
    return BetaKDDistiller(
        linear_model(1), linear_model(2), ForwardKLEnergy(), **options
    )


METHODS = ["fit", "evaluate", "predict", "summary"]
METHODS += ["train_on_batch", "test_on_batch", "predict_on_batch"]


@pytest.mark.parametrize("method", METHODS)
def test_arguments_stand_in_the_order_of_keras(method):
    """`fit(x, y, 8, 2, 0)` once raised an error: `verbose` was keyword-only."""
    ours, theirs = (
        list(inspect.signature(getattr(cls, method)).parameters)
        for cls in (BetaKDDistiller, keras.Model)
    )
    assert ours == theirs


def test_positional_arguments_reach_keras():
    model = distiller()
    model.compile(optimizer=keras.optimizers.SGD(0.1))
    x, y, weight = token_batch()
    seen = []
    callback = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(batch)
    )
    half = x[:2], y[:2], weight[:2]
    history = model.fit(x, y, 2, 3, 0, [callback], 0.0, half, False, None, weight, 1, 1)
    assert history.epoch == [1, 2]  # from `initial_epoch` 1 to `epochs` 3
    assert seen == [0, 0]  # `steps_per_epoch` 1 of two batches of 2
    values = model.evaluate(*half[:2], 2, 0, half[2], None, None, True)
    assert values["loss"] == pytest.approx(history.history["val_loss"][-1], rel=1e-6)
    logits = model.predict(x, 2, 0)
    assert np.shape(logits) == (4, 3, 5)
    # `predict_on_batch` once returned what `call` hands to the loss.
    # Sums of four products of about 1, rounded in another order.
    np.testing.assert_allclose(model.predict_on_batch(x), logits, rtol=1e-5, atol=1e-5)
    assert set(model.test_on_batch(*half, True)) == set(values)
    with pytest.raises(ValueError, match="`class_weight` is not supported"):
        model.train_on_batch(*half, {0: 2.0})


@pytest.mark.parametrize("fused", [None, "never", "Auto"])
def test_fused_has_three_values(fused):
    with pytest.raises(ValueError, match='`fused` must be "auto", `True` or `False`'):
        distiller(fused=fused)


def test_the_beta_of_the_cross_entropy():
    assert distiller().task_beta is None
    assert isinstance(distiller(task_beta=True).task_beta, TaskBeta)
    layer = FixedBeta(2.0)
    assert distiller(task_beta=layer).task_beta is layer
    with pytest.raises(ValueError, match="A beta must be a `keras_betakd.Beta` layer"):
        distiller(task_beta=2.0)


def test_summary_takes_a_line_length_and_shows_the_layers_of_both_models():
    lines = []
    distiller().summary(70, None, lines.append)
    assert {len(line) for line in lines} == {70}
    lines.clear()
    gemmas = tiny_gemma_text(12), tiny_gemma_text()
    # keras-hub's `summary` takes only three arguments by position.
    for pair in (gemmas, (linear_model(1), linear_model(2))):
        lines.clear()
        model = BetaKDDistiller(*pair, ForwardKLEnergy())
        model.summary(print_fn=lines.append, expand_nested=True, show_trainable=True)
        text = "\n".join(lines)
        for part in pair:
            assert part.layers[-1].name in text


def test_the_public_names_are_listed():
    assert sorted(keras_betakd.__all__) == sorted(set(keras_betakd.__all__))
    assert all(hasattr(keras_betakd, name) for name in keras_betakd.__all__)
    names = {name for name in dir(keras_betakd) if name[0].isupper()}
    assert names <= set(keras_betakd.__all__)
