"""The beta layers: theory, bounds, precision, features and configuration."""

import json

import keras
import numpy as np
import pytest
from gradients import value_and_grad
from keras import ops
from marks import kept

from keras_betakd import (
    AnalyticBeta,
    FixedBeta,
    InstanceBeta,
    TaskBeta,
    TeacherOutputs,
    TokenBeta,
)
from keras_betakd.objective import row_weights

pytestmark = pytest.mark.backends

ONE_ROW = np.ones((1, 1), "float32")
LAYERS = [
    FixedBeta(2.0, dim=3.0),
    TaskBeta(initial_value=2.0, max_value=10.0, multiplier=7.0),
    InstanceBeta(hidden_units=4, features="uncertainty"),
    TokenBeta(min_value=0.1),
    AnalyticBeta(momentum=0.5),
]


def teacher_outputs(hidden=6, seed=0):
    rng = np.random.default_rng(seed)
    weights = np.array([[1, 1, 0], [1, 0, 0]], "float32")
    return TeacherOutputs(
        logits=ops.array(rng.normal(size=(2, 3, 5)), dtype="float32"),
        weights=row_weights(ops.array(weights)),
        hidden_states=ops.array(rng.normal(size=(2, 4, hidden)), dtype="float32"),
        padding_mask=ops.array([[1, 1, 1, 0], [1, 1, 0, 0]], dtype="bool"),
        rows=ops.array(rng.normal(size=(2, 3, hidden)), dtype="float32"),
    )


@pytest.mark.parametrize("layer", LAYERS, ids=lambda x: type(x).__name__)
def test_config_survives_json(layer):
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    copy = keras.saving.deserialize_keras_object(config)
    assert copy.get_config() == layer.get_config()


@pytest.mark.parametrize(
    "layer, first",
    [(FixedBeta(2.0), 2.0), (TaskBeta(initial_value=2.0), 2.0)]
    + [(cls(initial_value=2.0), 2.0) for cls in (InstanceBeta, TokenBeta)]
    + [(AnalyticBeta(initial_value=2.0), 2.0)],
    ids=lambda x: type(x).__name__,
)
def test_start_and_penalty(layer, first):
    """Every kind starts at its stated value and adds -(d/2) log beta once."""
    teacher = teacher_outputs()
    log_beta = layer(teacher.weights, features=layer.features_of(teacher))
    np.testing.assert_allclose(ops.convert_to_numpy(log_beta), np.log(first), rtol=1e-6)
    assert len(layer.losses) == 1
    assert float(layer.losses[0]) == pytest.approx(-0.5 * np.log(first), rel=1e-6)


def test_penalty_leaves_out_examples_without_supervision():
    layer = InstanceBeta(multiplier=1.0)
    layer.build((None, None), (None, 6))
    layer.raw.kernel.assign(np.random.default_rng(1).normal(size=(64, 1)))
    features = np.random.default_rng(0).normal(size=(2, 6)).astype("float32")
    weights = row_weights(ops.array([[1.0, 1.0], [0.0, 0.0]]))
    log_beta = ops.convert_to_numpy(layer(weights, features=ops.array(features)))
    assert abs(log_beta[0] - log_beta[1]).item() > 1e-3
    assert float(layer.losses[0]) == pytest.approx(-0.5 * log_beta[0].item(), rel=1e-5)


def test_nothing_supervised_adds_nothing():
    layer = TaskBeta(initial_value=5.0)
    layer(ops.zeros((2, 3)))
    assert float(layer.losses[0]) == 0.0


@pytest.mark.parametrize("raw", [-1e5, -1e3, -20.0, 20.0, 1e3, 1e5])
def test_gradient_is_alive_beyond_the_bounds(raw):
    """A clamp has no gradient: a beta that momentum carried outside never came back. By
    rounding, x / sqrt(1 + x^2) had none 4,000 times as far out as the bound either."""
    layer = InstanceBeta(multiplier=1.0)
    value, (slope,) = value_and_grad(layer.bounded, np.float32(raw))
    assert abs(value) <= np.float32(np.log(100.0))
    assert 0 < slope < 0.02


def test_far_outside_is_at_the_bound():
    """The square of x was once infinite there, which set beta to its initial value."""
    layer = InstanceBeta(multiplier=1.0)
    assert float(layer.bounded(ops.array(1e25))) == pytest.approx(np.log(100.0))


def test_bounds_are_not_symmetric_when_the_start_is_not():
    layer = InstanceBeta(initial_value=1.0, min_value=0.5, max_value=20.0)
    low, high = (float(ops.exp(layer.bounded(ops.array(x)))) for x in (-450.0, 450.0))
    assert low == pytest.approx(0.5, rel=1e-3)
    assert high == pytest.approx(20.0, rel=1e-3)


@pytest.mark.parametrize("kind", [InstanceBeta, TaskBeta])
@pytest.mark.parametrize("multiplier", [1.0, 500.0])
def test_multiplier_speeds_up_but_does_not_inflate_the_gradient(multiplier, kind):
    """An inflated gradient would dominate the student's under global clipping."""
    layer = kind(multiplier=multiplier)
    function = layer.bounded if kind is InstanceBeta else layer.unbounded
    _, (slope,) = value_and_grad(function, np.float32(0.0))
    assert slope == pytest.approx(1.0)
    moved = float(function(ops.array(1e-3 / multiplier)))
    assert moved == pytest.approx(1e-3, rel=1e-4)


@pytest.mark.traced
@pytest.mark.parametrize("optimizer", kept(["SGD", "Adam"], "Adam"))
def test_a_task_beta_comes_back_from_its_bound(optimizer):
    """With a smooth bound, SGD's first large steps ended far outside it, where the
    slope is next to nothing: beta stayed at 0.011 in a run that needed 1.2."""
    layer = TaskBeta(multiplier=10.0, min_value=0.1, max_value=50.0)
    weights = ops.ones((1, 1))
    layer.build((1, 1))
    rate = {"SGD": 0.1, "Adam": 0.02}[optimizer]
    optimizer = getattr(keras.optimizers, optimizer)(rate)
    optimizer.build(layer.trainable_variables)

    def steps(energy, count):
        for _ in range(count):
            log_beta = float(layer.log_beta(None))
            slope = np.exp(log_beta) * energy - 0.5
            optimizer.apply([ops.convert_to_tensor(slope, "float32")])
        return float(ops.exp(layer.log_beta(None)))

    assert float(ops.exp(layer(weights))) == 1.0
    assert steps(20.0, 60) == pytest.approx(0.1, rel=1e-5)
    assert steps(0.0, 400) == pytest.approx(50.0, rel=1e-5)
    assert steps(0.05, 400) == pytest.approx(10.0, rel=0.1)


@pytest.mark.parametrize("policy", ["float16", "bfloat16", "mixed_float16"])
def test_beta_stays_float32(policy):
    """1 + 1e-4 is 1 in bfloat16: a beta of that precision would never change."""
    keras.config.set_dtype_policy(policy)
    layer = InstanceBeta(features="uncertainty", hidden_units=4)
    teacher = teacher_outputs()
    log_beta = layer(teacher.weights, features=layer.features_of(teacher))
    assert keras.backend.standardize_dtype(log_beta.dtype) == "float32"
    assert {v.dtype for v in layer.variables} == {"float32"}


def test_pooled_hidden_states_leave_out_padding():
    teacher = teacher_outputs()
    hidden = ops.convert_to_numpy(teacher.hidden_states)
    beta = InstanceBeta(features="hidden_states", shrinkage=1.0)
    pooled = ops.convert_to_numpy(beta.features_of(teacher))
    np.testing.assert_allclose(pooled[0], hidden[0, :3].mean(0), rtol=1e-5)
    np.testing.assert_allclose(pooled[1], hidden[1, :2].mean(0), rtol=1e-5)
    beta = TokenBeta(features="hidden_states", shrinkage=1.0)
    rows = ops.convert_to_numpy(beta.features_of(teacher))
    np.testing.assert_allclose(rows, ops.convert_to_numpy(teacher.rows))


def test_uncertainty_features_by_hand():
    p = np.array([0.7, 0.2, 0.1])
    entropy = -(p * np.log(p)).sum()
    # One class excluded by -inf, as some heads do: 0 * -inf must not be NaN.
    logits = np.append(np.log(p), -np.inf).astype("float32")[None, None]
    teacher = TeacherOutputs(logits=ops.array(logits), weights=ops.ones((1, 1)))
    features = InstanceBeta(features="uncertainty").features_of(teacher)
    np.testing.assert_allclose(
        ops.convert_to_numpy(features), [[entropy, 0.7, 0.5]], rtol=1e-5
    )


def test_features_by_callable():
    layer = InstanceBeta(features=lambda teacher: teacher.logits[:, 0, :2])
    assert tuple(layer.features_of(teacher_outputs()).shape) == (2, 2)


def test_analytic_beta_follows_the_running_mean():
    layer = AnalyticBeta(momentum=0.5)
    layer(ONE_ROW)
    energies, mean, count = [0.4, 0.1, 0.2], 0.0, 0.0
    for energy in energies:
        layer.update(ops.full((1, 1), energy), ops.ones((1, 1)))
        mean, count = 0.5 * mean + energy, 0.5 * count + 1.0
        expected = 0.5 / (mean / count)
        assert float(ops.exp(layer.log_beta(None))) == pytest.approx(expected, rel=1e-5)
    layer.update(ops.full((1, 1), np.nan), ops.zeros((1, 1)))
    assert float(ops.exp(layer.log_beta(None))) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("energy", [np.inf, np.nan])
def test_an_energy_that_is_not_finite_leaves_an_analytic_beta_alone(energy):
    """An infinite energy of one batch once kept beta at its lower bound for good."""
    layer = AnalyticBeta()
    layer(ONE_ROW)
    for value in (0.1, energy):
        layer.update(ops.full((1, 1), value), ops.ones((1, 1)))
    assert float(ops.exp(layer.log_beta(None))) == pytest.approx(5.0, rel=1e-5)


def test_analytic_beta_stays_at_its_bound_for_an_energy_of_zero():
    layer = AnalyticBeta(max_value=50.0)
    layer(ONE_ROW)
    for _ in range(5):
        layer.update(ops.zeros((1, 1)), ops.ones((1, 1)))
    assert float(ops.exp(layer.log_beta(None))) == pytest.approx(50.0, rel=1e-5)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: TaskBeta(dim=0), "Received: dim=0"),
        (lambda: TaskBeta(dim=float("inf")), "Received: dim=inf"),
        (lambda: FixedBeta(-1.0), "Received: value=-1.0"),
        (lambda: TaskBeta(initial_value=200.0), "initial_value=200.0"),
        (lambda: TaskBeta(multiplier=-1), "Received: multiplier=-1"),
        (lambda: AnalyticBeta(momentum=1.0), "Received: momentum=1.0"),
        (lambda: InstanceBeta(features="pixels"), "Received: features=pixels"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(("raw", "bound"), [(1e3, 100.0), (-1e3, 0.01)])
def test_a_task_beta_outside_its_bounds_counts_as_at_them(raw, bound):
    """A file may hold any value; e^500 is infinite. The gradient must not vanish."""
    layer = TaskBeta()
    layer.build((1, 1))
    layer.raw.assign(raw)
    assert float(ops.exp(layer.log_beta(None))) == pytest.approx(bound, rel=1e-4)
