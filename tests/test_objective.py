"""The objective's pure functions, against hand arithmetic and float64 NumPy."""

import keras
import numpy as np
import pytest
from gradients import value_and_grad
from keras import ops

from keras_betakd import objective
from keras_betakd.energies.masking import select_supervised

pytestmark = pytest.mark.backends

WEIGHTS = np.array([[1, 1, 0, 0], [1, 0, 0, 0]], "float32")


def test_row_weights_by_hand():
    by_example = objective.row_weights(ops.array(WEIGHTS))
    expected = [[0.25, 0.25, 0, 0], [0.5, 0, 0, 0]]
    np.testing.assert_allclose(ops.convert_to_numpy(by_example), expected)
    by_token = objective.row_weights(ops.array(WEIGHTS), "token")
    np.testing.assert_allclose(ops.convert_to_numpy(by_token), WEIGHTS / 3.0, rtol=1e-6)


@pytest.mark.parametrize("reduction", ["example", "token"])
def test_mean_divides_by_what_was_counted(reduction):
    # Dividing by every position instead gave 0.375 for energies that are all 1.
    weights = objective.row_weights(ops.array(WEIGHTS), reduction)
    assert float(objective.weighted_sum(1.0, weights)) == pytest.approx(1.0)


@pytest.mark.parametrize("reduction", ["example", "token"])
def test_doubling_all_weights_changes_nothing(reduction):
    once = objective.row_weights(ops.array(WEIGHTS), reduction)
    twice = objective.row_weights(ops.array(2 * WEIGHTS), reduction)
    np.testing.assert_allclose(
        ops.convert_to_numpy(once), ops.convert_to_numpy(twice), rtol=1e-6
    )


def test_weights_of_examples_are_kept():
    # Normalising within each example would lose that the first counts threefold.
    weights = objective.row_weights(ops.array([[3.0], [1.0]]))
    np.testing.assert_allclose(ops.convert_to_numpy(weights), [[0.75], [0.25]])


@pytest.mark.parametrize("reduction", ["example", "token"])
def test_nothing_supervised_gives_zero(reduction):
    # A division by a count of zero turned whole runs into NaN.
    weights = objective.row_weights(ops.zeros((2, 3)), reduction)
    value = objective.weighted_sum(ops.full((2, 3), np.nan), weights)
    assert float(value) == 0.0


def test_nan_in_a_row_without_weight_reaches_neither_value_nor_gradient():
    weights = objective.row_weights(ops.array(WEIGHTS))
    logits = np.random.default_rng(0).normal(size=(2, 4, 3)).astype("float32")
    logits[WEIGHTS == 0] = np.nan

    def loss(x):
        x = select_supervised(x, weights)
        return objective.weighted_sum(-ops.log_softmax(x)[..., 0], weights)

    value, (grad,) = value_and_grad(loss, logits)
    assert np.isfinite(value)
    assert np.isfinite(grad).all()
    assert (grad[WEIGHTS == 0] == 0).all()
    assert (grad[WEIGHTS > 0] != 0).any()


def test_nan_in_a_row_without_weight_does_not_reach_the_slope_of_beta():
    """The derivative of beta * l by log beta is l, also at an ignored row."""
    weights = objective.row_weights(ops.array(WEIGHTS))
    energy = ops.array(np.where(WEIGHTS == 0, np.nan, 0.1), dtype="float32")
    value, (slope,) = value_and_grad(
        lambda u: objective.weighted_energy(energy, u, weights), np.float32(0.0)
    )
    assert value == pytest.approx(0.1) and slope == pytest.approx(0.1)


def test_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match="Received: reduction=mean"):
        objective.row_weights(ops.ones((1, 1)), "mean")


@pytest.mark.parametrize("dim", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("energy", [1e-3, 0.1, 7.0])
def test_optimal_beta_minimises_the_term(energy, dim):
    """beta* = d / (2 l), there beta * l = d / 2, and the term is convex in log beta."""
    weights = objective.row_weights(ops.ones((1, 1)))
    best = np.log(objective.optimal_beta(energy, dim))

    def term(log_beta):
        penalty = objective.log_beta_penalty(log_beta, weights, dim)
        return objective.weighted_energy(energy, log_beta, weights) + penalty

    value, (slope,) = value_and_grad(term, np.float32(best))
    assert slope == pytest.approx(0.0, abs=1e-5 * dim)
    assert value == pytest.approx(0.5 * dim * (1 + np.log(2 * energy / dim)), rel=1e-4)
    for shift in (-1.0, 1.0):
        assert float(term(ops.array(best + shift, dtype="float32"))) > value


def test_term_by_hand():
    """beta 2, E 0.1, d 1: 0.2 - 0.5 log 2 = -0.146574, a legitimate negative."""
    weights = objective.row_weights(ops.ones((2, 3)))
    log_beta = keras.ops.log(2.0)
    total = objective.weighted_energy(0.1, log_beta, weights)
    total = total + objective.log_beta_penalty(log_beta, weights)
    assert float(total) == pytest.approx(-0.146574, abs=1e-6)
