"""Energies of a user's own from which nothing is learned are told of."""

import warnings

import keras
import numpy as np
import pytest
from keras import ops
from plain_models import ConstantEnergy, linear_model

from keras_betakd import BetaKDDistiller, Energy, ForwardKLEnergy
from keras_betakd.energies.logit_rows import LogitRows

pytestmark = pytest.mark.backends


class DisagreementEnergy(Energy):
    """The share of tokens where the models differ, which has no gradient."""

    def pointwise(self, teacher, student):
        differ = ops.argmax(teacher, axis=-1) != ops.argmax(student, axis=-1)
        return ops.cast(differ, "float32")


class CutEnergy(Energy):
    def pointwise(self, teacher, student):
        return ops.mean(ops.square(teacher - ops.stop_gradient(student)), axis=-1)


class BoundedEnergy(Energy):
    """Flat where the student is far from its teacher, and only there."""

    def pointwise(self, teacher, student):
        return ops.minimum(ops.mean(ops.abs(teacher - student), axis=-1), 0.2)


class TwoRowsEnergy(Energy):
    """Takes no other number of rows than its data has."""

    def pointwise(self, teacher, student):
        return ops.mean(ops.square(teacher - student - ops.ones((2, 5))), axis=-1)


def told(energy):
    distiller = BetaKDDistiller(linear_model(0), linear_model(1), energy)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        distiller.compile(optimizer=keras.optimizers.SGD(0.1))
    return [m for m in (str(w.message) for w in caught) if "has no gradient" in m]


@pytest.mark.parametrize("energy", [DisagreementEnergy(), CutEnergy()])
def test_an_energy_without_gradient_is_told_of_before_training(energy):
    """It was weighted and reported like any other; with the fused head, PyTorch ended
    the first step by an error about tensors, and TensorFlow by another."""
    (message,) = told(energy)
    assert f"energy '{energy.name}' has" in message
    assert f"`{type(energy).__name__}`" in message
    rng = np.random.default_rng(0)
    rows = [LogitRows(ops.array(rng.normal(size=(3, 5)), "float32")) for _ in range(2)]
    value, ((_, gradient),) = energy.value_and_gradient(*rows)
    assert value.shape == (3,)
    np.testing.assert_array_equal(ops.convert_to_numpy(gradient), np.zeros((3, 5)))


@pytest.mark.parametrize(
    "energy",
    [BoundedEnergy(), ConstantEnergy(0.0), TwoRowsEnergy(), ForwardKLEnergy()],
    ids=lambda energy: energy.name,
)
def test_others_are_not(energy):
    assert told(energy) == []
