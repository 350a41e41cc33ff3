"""Every kind of beta on random numbers: bounds, slopes, masks, and where it settles.

See `test_fuzz_energies.py` for the command of a long run.
"""

import math

import keras
import numpy as np
import pytest
from fuzz_cases import EXAMPLES, row_weights
from gradients import value_and_grad
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_betakd import AnalyticBeta, FixedBeta, InstanceBeta, TaskBeta, TokenBeta
from keras_betakd.objective import log_beta_penalty, weighted_energy
from keras_betakd.objective import row_weights as normalised_weights

pytestmark = pytest.mark.backends

SHAPE, WIDTH = (3, 4), 5
few = settings(max_examples=max(1, settings.default.max_examples // 4))  # slow ones
SEEDS = st.integers(0, 2**32 - 1)
POSITIVE = st.floats(1e-3, 1e3)
NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)
# From nothing to more than any loss, and what a divergence may be.
ENERGIES = st.floats(0, 2.0**100, width=32) | st.sampled_from(
    [0.0, 1e-30, 1e6, math.inf]
)


@st.composite
def ranges(draw):
    """Arguments of a beta that moves: d, a start and bounds about it."""
    start = draw(POSITIVE)
    below, above = (draw(st.floats(1.01, 1e4)) for _ in range(2))
    return {
        "dim": draw(POSITIVE),
        "initial_value": start,
        "min_value": start / below,
        "max_value": start * above,
    }


def within(log_beta, options):
    log_beta = np.asarray(ops.convert_to_numpy(log_beta), "float64")
    low, high = np.log(options["min_value"]), np.log(options["max_value"])
    slack = 1e-5 * (1 + abs(low) + abs(high))
    return np.all((log_beta >= low - slack) & (log_beta <= high + slack))


def random_weights(data, rng):
    raw = data.draw(row_weights(rng, SHAPE))
    return raw, normalised_weights(ops.convert_to_tensor(raw))


@given(options=ranges(), raw=NUMBERS)
def test_a_task_beta_keeps_its_bounds_whatever_its_variable_holds(options, raw):
    layer = TaskBeta(**options)
    layer.build(SHAPE)
    layer.raw.assign(raw)
    assert within(layer.log_beta(None), options)
    EXAMPLES["beta"] += 1


@given(options=ranges(), raw=NUMBERS)
def test_what_a_network_predicts_is_bent_into_the_bounds(options, raw):
    """From 2e19 on the square overflowed, which gave the initial value instead of the
    bound; 4,000 times as far out as the bound, no gradient was left."""
    layer = InstanceBeta(**options, multiplier=1.0)
    value, (slope,) = value_and_grad(layer.bounded, np.float32(raw))
    assert within(value, options)
    start = math.log(options["initial_value"])
    bound = math.log(options["max_value" if raw > 0 else "min_value"])
    room = abs(bound - start)
    x = np.longdouble(np.float32(raw))
    expected = start + x / np.sqrt(1 + (x / room) ** 2)
    assert abs(value - expected) <= 1e-5 * (1 + abs(start) + room)
    assert 0 <= slope <= 1 + 1e-6 and (slope > 0 or abs(raw) > 1e6 * room)
    EXAMPLES["beta"] += 1


@given(data=st.data(), log_beta=st.floats(-10, 10, width=32), dim=POSITIVE)
def test_a_term_is_lowest_at_d_over_2l(data, log_beta, dim):
    """The derivative is beta l - d / 2. NaN of a masked row once reached it."""
    rng = np.random.default_rng(data.draw(SEEDS))
    raw, weights = random_weights(data, rng)
    energy = rng.exponential(size=SHAPE).astype("float32")
    mean = (energy * ops.convert_to_numpy(weights)).sum()
    energy[raw == 0] = data.draw(st.sampled_from([math.nan, math.inf, -1.0]))

    energy = ops.convert_to_tensor(energy)

    def term(u):
        return weighted_energy(energy, u, weights) + log_beta_penalty(u, weights, dim)

    value, (slope,) = value_and_grad(term, np.float32(log_beta))
    if not raw.any():
        assert value == 0 and slope == 0
    else:
        beta = math.exp(log_beta)
        size = float(beta * mean + dim * (1 + abs(log_beta)))
        assert slope == pytest.approx(beta * mean - dim / 2, abs=1e-5 * size)
        expected = beta * mean - dim / 2 * log_beta
        assert value == pytest.approx(expected, abs=1e-5 * size)
    EXAMPLES["beta"] += 1


@few
@given(options=ranges(), energy=st.floats(0, 1e4, width=32))
def test_a_task_beta_settles_at_d_over_2l_or_at_its_bound(options, energy):
    layer = TaskBeta(**options, multiplier=3.0)
    layer.build(SHAPE)
    # Half of Newton's step at the optimum.
    optimizer = keras.optimizers.SGD(1.0 / options["dim"] / 3.0)
    optimizer.build(layer.trainable_variables)
    for _ in range(60):
        slope = np.exp(float(layer.log_beta(None))) * energy - 0.5 * options["dim"]
        optimizer.apply([ops.convert_to_tensor(slope, "float32")])
    best = 0.5 * options["dim"] / energy if energy else math.inf
    best = np.clip(best, options["min_value"], options["max_value"])
    assert float(layer.log_beta(None)) == pytest.approx(math.log(best), abs=1e-3)
    EXAMPLES["beta"] += 1


@given(options=ranges(), energies=st.lists(ENERGIES, max_size=6), data=st.data())
def test_an_analytic_beta_is_d_over_2l_within_its_bounds(options, energies, data):
    """One infinite energy, valid for a divergence, set beta to its lower bound for
    good, and one NaN set it to NaN."""
    layer = AnalyticBeta(**options, momentum=0.5)
    layer.build(SHAPE)
    total = count = 0.0
    for energy in energies:
        raw, weights = random_weights(data, np.random.default_rng(data.draw(SEEDS)))
        values = np.full(SHAPE, energy, "float32")
        values[raw == 0] = math.nan
        layer.update(ops.convert_to_tensor(values), weights)
        if raw.any() and math.isfinite(energy):
            total, count = 0.5 * total + energy, 0.5 * count + 1
    best = options["initial_value"]
    if count:
        best = 0.5 * options["dim"] / (total / count) if total else math.inf
        best = np.clip(best, options["min_value"], options["max_value"])
    assert float(layer.log_beta(None)) == pytest.approx(math.log(best), abs=1e-4)
    EXAMPLES["beta"] += 1


@pytest.mark.parametrize("kind", [InstanceBeta, TokenBeta])
@given(options=ranges(), data=st.data(), size=st.sampled_from([0, 1e-30, 1, 1e4, 1e18]))
def test_a_predicted_beta_is_within_bounds_and_masks_count_for_nothing(
    kind, options, data, size
):
    rng = np.random.default_rng(data.draw(SEEDS))
    raw, weights = random_weights(data, rng)
    shape = (*SHAPE, WIDTH) if kind is TokenBeta else (SHAPE[0], WIDTH)
    features = (size * rng.normal(size=shape)).astype("float32")
    layer = kind(**options, hidden_units=3)
    layer.build(SHAPE, shape)
    layer.raw.kernel.assign(data.draw(st.sampled_from([0, 1, 1e6])) * np.ones((3, 1)))
    log_beta = layer(weights, features=ops.convert_to_tensor(features))
    assert within(log_beta, options)
    (penalty,) = layer.losses
    log_beta = np.broadcast_to(ops.convert_to_numpy(log_beta), SHAPE).astype("float64")
    mean = (log_beta * ops.convert_to_numpy(weights))[raw != 0].sum()
    expected = -options["dim"] / 2 * mean
    room = 1e-5 * options["dim"]
    assert float(penalty) == pytest.approx(expected, rel=1e-4, abs=room)
    EXAMPLES["beta"] += 1


@given(value=POSITIVE, dim=POSITIVE, data=st.data())
def test_a_fixed_beta_is_what_it_is(value, dim, data):
    raw, weights = random_weights(data, np.random.default_rng(data.draw(SEEDS)))
    layer = FixedBeta(value, dim=dim)
    assert float(layer(weights)) == pytest.approx(math.log(value), abs=1e-6)
    expected = -dim / 2 * math.log(value) * bool(raw.any())
    assert float(layer.losses[0]) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    EXAMPLES["beta"] += 1
