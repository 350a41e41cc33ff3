"""A beta at a bound is told of: TaskBeta once sat at 0.01 all run long in silence."""

import warnings

import keras
import pytest
from plain_models import ConstantEnergy, linear_model, token_batch

from keras_betakd import BetaKDDistiller, FixedBeta, TaskBeta
from keras_betakd.distillation.bounds_report import side_of_bound

X, Y, WEIGHT = token_batch()


def warned(energy, beta, epochs=3):
    """The messages of a training that are about bounds and signs."""
    model = BetaKDDistiller(
        linear_model(1), linear_model(2), ConstantEnergy(energy), beta
    )
    model.compile(optimizer=keras.optimizers.SGD(1e-3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(X, Y, sample_weight=WEIGHT, epochs=epochs, verbose=0)
    return [str(w.message) for w in caught if "in this epoch" in str(w.message)]


def test_it_is_told_once_which_bound_and_why():
    beta = TaskBeta(initial_value=49.9, max_value=50.0)
    (message,) = warned(energy=1e-6, beta=beta)
    assert "'constant' stood at its upper bound, 50" in message
    assert "d / (2 * 50) = 0.01" in message


def test_the_lower_bound_says_that_the_teacher_is_off():
    beta = TaskBeta(initial_value=0.0101, min_value=0.01)
    (message,) = warned(energy=1e4, beta=beta)
    assert "lower bound, 0.01" in message and "teacher has next to no" in message


def test_a_negative_energy_is_told_of_in_place_of_the_bound():
    """Its beta went to the upper bound, which was said to be no fault."""
    (message,) = warned(-0.5, TaskBeta(initial_value=49.9, max_value=50.0))
    assert "mean energy of 'constant' was negative in this epoch, -0.5." in message
    assert warned(-0.5, FixedBeta(3.0)) == []
    assert warned(-1e-8, TaskBeta()) == []  # an energy of 0, rounded


@pytest.mark.parametrize("beta", [FixedBeta(3.0), TaskBeta()], ids=["fixed", "learned"])
def test_between_the_bounds_and_for_a_fixed_beta_nothing_is_told(beta):
    assert warned(energy=0.5, beta=beta) == []


@pytest.mark.parametrize(
    "value, expected", [(0.01, "lower"), (1.0, None), (100.0, "upper"), (95.0, "upper")]
)
def test_what_is_at_a_bound(value, expected):
    assert side_of_bound(value, 0.01, 100.0) == expected
    assert side_of_bound(value, 1.0, 1.0) is None
