"""Energies as losses of any Keras model: each works, or says where it does."""

import keras
import numpy as np
import pytest

import keras_betakd as kb

CLASSES, WIDTH = 5, 6
ROWS = np.random.default_rng(0)
X = ROWS.normal(size=(8, WIDTH)).astype("float32")
LOGITS = ROWS.normal(size=(8, CLASSES)).astype("float32")
LABELS = ROWS.integers(0, CLASSES, size=8)


def student(width=CLASSES, *shape):
    layers = [keras.Input((WIDTH,)), keras.layers.Dense(width * int(np.prod(shape)))]
    if shape:
        layers.append(keras.layers.Reshape((*shape, width)))
    return keras.Sequential(layers)


def fitted(energy, y, model):
    """The loss that `fit` reports for one batch, and that of the energy itself."""
    model.compile(keras.optimizers.SGD(0.1), loss=energy)
    expected = energy.call(y, model.predict(X, verbose=0))
    history = model.fit(X, y, batch_size=8, epochs=2, verbose=0).history
    assert history["loss"][1] < history["loss"][0]
    return history["loss"][0], float(keras.ops.mean(expected))


@pytest.mark.backends
@pytest.mark.parametrize(
    "energy",
    [
        kb.ForwardKLEnergy(),
        kb.ReverseKLEnergy(temperature=2.0),
        kb.JensenShannonEnergy(),
        kb.TotalVariationEnergy(),
        kb.CosineProbsEnergy(),
        kb.MSEProbsEnergy(),
        kb.SkewForwardKLEnergy(),
        kb.SkewReverseKLEnergy(),
        kb.AdaptiveKLEnergy(),
        kb.EntropyAwareKLEnergy(),
        kb.MSELogitsEnergy(),
        kb.CosineLogitsEnergy(),
        kb.ImageTokenEnergy(kb.ForwardKLEnergy()),
        kb.FeatureMSEEnergy(),
        kb.FeatureCosineEnergy(),
        kb.AttentionEnergy(),
        kb.ImageAttentionEnergy([0], [0]),
    ],
    ids=lambda energy: energy.name,
)
def test_energies_of_two_tensors(energy):
    received, expected = fitted(energy, LOGITS, student())
    assert received == pytest.approx(expected, rel=1e-5)


@pytest.mark.backends
def test_other_widths():
    """Another vocabulary; similarities of tokens of another width."""
    wider = ROWS.normal(size=(8, CLASSES + 3)).astype("float32")
    received, expected = fitted(kb.ULDEnergy(), wider, student())
    assert received == pytest.approx(expected, rel=1e-5)
    tokens = ROWS.normal(size=(8, 4, 3)).astype("float32")
    received, expected = fitted(kb.FeatureRelationEnergy(), tokens, student(2, 4))
    assert received == pytest.approx(expected, rel=1e-5)


@pytest.mark.backends
@pytest.mark.traced
@pytest.mark.parametrize("shape", [(), (3,)])
def test_labels_behind_the_logits(shape):
    """Keras refuses a dict of both for a model with one output."""
    logits = ROWS.normal(size=(8, *shape, CLASSES)).astype("float32")
    labels = ROWS.integers(0, CLASSES, size=(8, *shape))
    energy = kb.DKDEnergy()
    packed = np.concatenate([logits, labels[..., None]], axis=-1)
    model = student(CLASSES, *shape)
    expected = energy.call(
        {"logits": logits, "labels": labels}, model.predict(X, verbose=0)
    )
    received, _ = fitted(energy, packed, model)
    assert received == pytest.approx(float(keras.ops.mean(expected)), rel=1e-5)


@pytest.mark.backends
@pytest.mark.parametrize("y", [LOGITS, LABELS, LABELS[:, None]])
def test_logits_without_labels_say_how_to_give_them(y):
    model = student()
    model.compile("sgd", loss=kb.DKDEnergy())
    with pytest.raises(ValueError, match=r"np.concatenate\(\[logits, labels"):
        model.fit(X, y, verbose=0)


def test_labels_in_half_precision_are_not_exact():
    packed = np.concatenate([LOGITS, LABELS[:, None]], axis=-1)
    packed = keras.ops.convert_to_tensor(packed, dtype="bfloat16")
    with pytest.raises(ValueError, match="in bfloat16"):
        kb.DKDEnergy()(packed, LOGITS)


@pytest.mark.backends
@pytest.mark.traced
@pytest.mark.parametrize(
    "energy",
    [
        kb.TAIDEnergy(total_steps=5),
        kb.CTKDEnergy(total_steps=5),
        kb.CTKDMLPEnergy(total_steps=5, classes=CLASSES),
        kb.ImageTokenEnergy(kb.TAIDEnergy(total_steps=5)),
        kb.FeatureMSEEnergy(widths=(CLASSES, CLASSES + 1)),
    ],
    ids=lambda energy: energy.name,
)
def test_what_learns_or_changes_needs_a_distiller(energy):
    """Nothing trained its variables: t, the temperature and the projection stood."""
    size = CLASSES + (energy.name == "feature_mse")
    y = np.zeros((8, size), "float32")
    assert keras.ops.isfinite(
        energy(y, LOGITS)
    )  # outside of `compile` it is a function
    model = student()
    model.compile("sgd", loss=energy)
    with pytest.raises(ValueError, match="Use it in a `BetaKDDistiller`"):
        model.fit(X, y, verbose=0)


def test_widths_that_differ_are_projected_in_a_distiller():
    model = student()
    model.compile("sgd", loss=kb.FeatureMSEEnergy())
    with pytest.raises(ValueError, match="by `widths="):
        model.fit(X, np.zeros((8, CLASSES + 1)), verbose=0)
