"""`InstanceBeta(shrinkage=...)` against the numbers of its formula."""

import keras
import numpy as np
import pytest
from gradients import value_and_grad
from keras import ops

from keras_betakd import AnalyticBeta, InstanceBeta, TokenBeta
from keras_betakd.objective import optimal_beta, row_weights, weighted_energy

ENERGIES = np.array([[0.02], [0.2], [2.0]], "float32")
WEIGHTS = row_weights(np.ones((3, 1), "float32"))
MEAN = 0.74  # of the three
# kappa: the best betas of the three energies, and the objective there (float64).
GOLDEN = {
    0.25: ([3.048780487805, 1.623376623377, 0.286041189931], 0.552576973281),
    1.0: ([1.315789473684, 1.063829787234, 0.364963503650], 1.223881890327),
    4.0: ([0.838926174497, 0.791139240506, 0.504032258065], 3.412524061025),
}


def layer_of(kappa, **options):
    layer = InstanceBeta(shrinkage=kappa, **options)
    layer.build((3, 1), (3, 3))
    layer.update(ops.array(ENERGIES), WEIGHTS)
    return layer


def objective(layer, log_beta):
    penalty = layer.penalty(log_beta, WEIGHTS)
    return weighted_energy(ops.array(ENERGIES), log_beta, WEIGHTS) + penalty


@pytest.mark.backends
@pytest.mark.parametrize("kappa", GOLDEN)
def test_the_objective_and_its_best_betas(kappa):
    betas, expected = GOLDEN[kappa]
    layer, log_beta = layer_of(kappa), np.log(betas)[:, None].astype("float32")
    value, (slope,) = value_and_grad(lambda s: objective(layer, s), log_beta)
    assert value == pytest.approx(expected, abs=1e-6)
    np.testing.assert_allclose(slope, 0.0, atol=1e-6)
    mean = ENERGIES.mean()
    np.testing.assert_allclose(
        (1 + kappa) * 0.5 / (ENERGIES[:, 0] + kappa * mean), betas, rtol=1e-6
    )


def test_without_shrinkage_it_is_the_papers_penalty_and_has_no_state():
    layer = layer_of(0.0)
    assert not layer.non_trainable_variables
    log_beta = ops.array([[0.3], [-0.2], [0.5]])
    assert float(layer.penalty(log_beta, WEIGHTS)) == pytest.approx(-0.1, abs=1e-6)


def test_much_shrinkage_is_an_analytic_beta():
    layer, analytic = layer_of(1e6), AnalyticBeta()
    analytic.build((3, 1))
    analytic.update(ops.array(ENERGIES), WEIGHTS)
    best = analytic.log_beta(None)
    _, (slope,) = value_and_grad(
        lambda s: objective(layer, s) / 1e6, np.full((3, 1), float(best), "float32")
    )
    np.testing.assert_allclose(slope, 0.0, atol=1e-6)
    assert float(ops.exp(best)) == pytest.approx(optimal_beta(MEAN), rel=1e-6)


def test_before_an_energy_is_known_beta_is_best_where_it_starts():
    layer = InstanceBeta(shrinkage=2.0, initial_value=3.0)
    layer.build((3, 1), (3, 3))
    start = np.full((3, 1), np.log(3.0), "float32")
    energy = ops.full((3, 1), 0.5 / 3.0)

    def term(log_beta):
        of_energy = weighted_energy(energy, log_beta, WEIGHTS)
        return of_energy + layer.penalty(log_beta, WEIGHTS)

    _, (slope,) = value_and_grad(term, start)
    np.testing.assert_allclose(slope, 0.0, atol=1e-6)


def test_the_prior_has_no_gradient_towards_the_energy():
    """Or it would pull at the student a second time."""
    layer, log_beta = layer_of(4.0), ops.zeros((3, 1))
    _, (slope,) = value_and_grad(
        lambda energy: (
            weighted_energy(energy, log_beta, WEIGHTS)
            + layer.penalty(log_beta, WEIGHTS)
        ),
        ENERGIES,
    )
    np.testing.assert_allclose(slope, ops.convert_to_numpy(WEIGHTS), rtol=1e-6)


@pytest.mark.parametrize("kind", [InstanceBeta, TokenBeta])
def test_it_is_saved_and_comes_back(kind):
    layer = kind(shrinkage=4.0, speed=0.02)
    copy = kind.from_config(layer.get_config())
    assert copy.shrinkage == 4.0 and copy.speed == 0.02


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
def test_what_is_no_shrinkage_is_refused(wrong):
    with pytest.raises(ValueError, match="at least 0"):
        InstanceBeta(shrinkage=wrong)


def test_hidden_states_without_it_are_warned_of():
    with pytest.warns(UserWarning, match="shrinkage=4.0"):
        InstanceBeta(features="hidden_states")
    assert keras.tree.flatten(InstanceBeta(features="hidden_states", shrinkage=1.0))
