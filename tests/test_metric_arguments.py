"""`compile(metrics=...)` and `weighted_metrics`: the same numbers, under free names."""

import keras
import keras_hub
import numpy as np
import pytest
from plain_models import cross_entropy64, linear_model, token_batch
from tiny_models import tiny_gemma_text

from keras_betakd import BetaKDDistiller, ForwardKLEnergy, TaskBeta

SparseAccuracy = keras.metrics.SparseCategoricalAccuracy


def distiller(**options):
    model = BetaKDDistiller(
        linear_model(1), linear_model(2), {"kl": ForwardKLEnergy()}, TaskBeta()
    )
    model.compile(optimizer=keras.optimizers.SGD(0.0), **options)
    return model


def evaluated(model):
    x, y, weight = token_batch()
    y = np.where(weight > 0, y, -100)  # slots without a label, as users mark them
    options = {"batch_size": 2, "return_dict": True, "verbose": 0}
    return model.evaluate(x, y, sample_weight=weight, **options)


def accuracy_of(x, y, weight):
    logits = x @ linear_model(2).get_weights()[0] + linear_model(2).get_weights()[1]
    return float((logits.argmax(-1) == y)[weight > 0].mean())


@pytest.mark.backends
@pytest.mark.traced
@pytest.mark.parametrize("argument", ["metrics", "weighted_metrics"])
def test_both_arguments_count_the_supervised_rows(argument):
    """`metrics` once averaged over slots without a label: 0.016 instead of 0.75."""
    own = [SparseAccuracy(name="mine"), keras_hub.metrics.Perplexity(from_logits=True)]
    values = evaluated(distiller(**{argument: own}))
    x, y, weight = token_batch()
    assert values["mine"] == pytest.approx(accuracy_of(x, y, weight))
    logits = x @ linear_model(2).get_weights()[0] + linear_model(2).get_weights()[1]
    task = cross_entropy64(y, logits)
    # keras-hub weights the samples of each batch alike.
    assert 1 < values["perplexity"] < np.exp(task.max())
    assert ("accuracy" in values) == (argument == "metrics")


def test_the_metric_is_the_same_in_every_epoch():
    model = distiller(metrics=[keras_hub.metrics.Perplexity(from_logits=True)])
    x, y, weight = token_batch()
    history = model.fit(
        x, y, sample_weight=weight, epochs=3, batch_size=2, verbose=0, shuffle=False
    ).history["perplexity"]
    assert history == pytest.approx([history[0]] * 3, rel=1e-5)


@pytest.mark.parametrize(
    "metrics, names",
    [
        (["accuracy"], {"accuracy"}),
        (
            ["acc", "sparse_categorical_accuracy"],
            {"acc", "sparse_categorical_accuracy"},
        ),
        ([["acc"], [SparseAccuracy(name="b")]], {"acc", "b"}),
        ({"logits": [SparseAccuracy(name="a")]}, {"a"}),
        (SparseAccuracy(name="accuracy"), {"accuracy"}),
        ([keras.metrics.sparse_categorical_accuracy], {"sparse_categorical_accuracy"}),
    ],
    ids=["own", "names", "nested", "dict", "bare", "function"],
)
def test_the_forms_that_keras_takes(metrics, names):
    for options in ({"metrics": metrics}, {"weighted_metrics": metrics}):
        values = evaluated(distiller(**options))
        right = accuracy_of(*token_batch())
        assert names <= set(values)
        assert [values[n] for n in names] == pytest.approx([right] * len(names))


def test_the_distillers_own_accuracy_keeps_the_fused_head():
    model = BetaKDDistiller(
        tiny_gemma_text(), tiny_gemma_text(), ForwardKLEnergy(), fused=True
    )
    model.compile(metrics=["accuracy"])
    records = {"prompts": ["what color?"] * 2, "responses": ["red", "blue"]}
    assert "accuracy" in model.evaluate(records, return_dict=True, verbose=0)


@pytest.mark.parametrize(
    "name", ["kl", "kl_beta", "loss", "task_loss", "objective", "val_mine"]
)
def test_a_name_that_is_taken_is_refused(name):
    """A metric of the name of an energy once replaced it in the logs."""
    for argument in ("metrics", "weighted_metrics"):
        with pytest.raises(ValueError, match=rf"that are taken: \['{name}'\]"):
            distiller(**{argument: [SparseAccuracy(name=name)]})
    with pytest.raises(ValueError, match=r"taken: \['accuracy'\]"):
        distiller(metrics=["accuracy", SparseAccuracy(name="accuracy")])


@pytest.mark.parametrize("name", ["objective", "val_kl"])
def test_an_energy_takes_no_name_of_the_distiller(name):
    with pytest.raises(ValueError, match=rf"Names that are taken: \['{name}'"):
        BetaKDDistiller(linear_model(1), linear_model(2), {name: ForwardKLEnergy()})


@pytest.mark.parametrize(
    "metric",
    [
        keras.metrics.SparseCategoricalCrossentropy(),
        keras_hub.metrics.Perplexity(),
        "sparse_categorical_crossentropy",
    ],
    ids=["object", "perplexity", "name"],
)
def test_a_metric_of_probabilities_is_refused(metric):
    with pytest.raises(ValueError, match="expects probabilities.*from_logits=True"):
        distiller(metrics=[metric])


def test_other_arguments_of_compile():
    with pytest.raises(ValueError, match="`loss_weights` is not supported: the betas"):
        distiller(loss_weights=[1.0])
    with pytest.raises(ValueError, match="nonsense"):
        distiller(metrics=["nonsense"])


def test_the_metrics_are_saved_in_the_archive(tmp_path):
    model = distiller(metrics=[SparseAccuracy(name="mine")])
    expected = evaluated(model)
    model.save(tmp_path / "x.keras")
    again = keras.saving.load_model(tmp_path / "x.keras")
    assert evaluated(again) == pytest.approx(expected)


@pytest.mark.backends
@pytest.mark.traced
@pytest.mark.parametrize("weighted", [False, True])
def test_weighted_metrics_of_a_classifier(weighted):
    """In a graph TensorFlow knew of one row an example, but not of one weight."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 4)).astype("float32"), rng.integers(0, 5, 8)
    weight = rng.integers(0, 3, 8).astype("float32") if weighted else None

    def model(seed):
        keras.utils.set_random_seed(seed)
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)])

    distiller = BetaKDDistiller(model(0), model(1), ForwardKLEnergy())
    distiller.compile("sgd", weighted_metrics=["accuracy"])
    found = distiller.evaluate(x, y, 4, 0, weight, return_dict=True)["accuracy"]
    best = distiller.student.predict(x, verbose=0).argmax(-1)
    np.testing.assert_allclose(found, np.average(best == y, weights=weight), rtol=1e-6)
