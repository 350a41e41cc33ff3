"""TAID: its schedule against float64, its state in training, files and resumption."""

import math

import keras
import numpy as np
import pytest
from marks import kept
from plain_models import as_array, linear_model, token_batch
from tiny_models import tiny_gemma3, vqa_records

import keras_betakd as kd
from keras_betakd.energies import TAIDSchedule

pytestmark = pytest.mark.backends

# Independent float64 recurrence, run once over these energies at start 0.4, rate 5e-4,
# momentum 0.99: t and the running mean after each step.
ENERGIES = [2.0, 1.8, 1.9, 1.2, 1.0, 1.05]
TREND = [0.0, 0.001, 0.000434444444, 0.004114310527, 0.005739834088, 0.005182435742]
T_WITHOUT_LINE = [0.4, 0.400150075, 0.40030007006, 0.40045030346, 0.40060062104]
T_WITHOUT_LINE += [0.40075085918]
T_ON_LINE = [0.4, 0.46, 0.52, 0.58, 0.64, 0.7]


def schedule(total_steps=10, rate=5e-4):
    return TAIDSchedule(0.4, 1.0, total_steps, rate, 0.99)


@pytest.mark.parametrize(
    ("total_steps", "expected"), [(10, T_ON_LINE), (10**9, T_WITHOUT_LINE)]
)
def test_schedule_follows_its_recurrence(total_steps, expected):
    it, seen = schedule(total_steps), []
    for energy in ENERGIES:
        it.update(energy)
        seen.append((float(it.t.value), float(it.trend.value)))
    np.testing.assert_allclose(np.array(seen)[:, 0], expected, rtol=3e-7)
    np.testing.assert_allclose(np.array(seen)[:, 1], TREND, rtol=1e-5, atol=1e-9)


def test_t_reaches_its_end_ahead_of_the_line_and_never_turns_back():
    # In other code t never left its start, since no step ever reached it.
    rng = np.random.default_rng(0)
    energies = np.exp(-np.arange(201) / 40) * rng.uniform(0.8, 1.2, 201)
    it, seen = schedule(200, rate=0.05), []
    t, trend = 0.4, 0.0
    for k, energy in enumerate(energies):
        it.update(energy)
        ahead = 0.0
        if k:
            fall = (energies[k - 1] - energy) / energies[k - 1]
            trend = 0.99 * trend + 0.01 * fall
            ahead = 0.05 / (1 + math.exp(-trend)) * (1 - t)
        t = min(1.0, max(0.4 + 0.6 * k / 200, t + ahead))
        seen.append(float(it.t.value))
        assert seen[-1] == pytest.approx(t, rel=2e-6)
    assert np.all(np.diff(seen) >= 0)
    assert seen[100] > 0.75  # ahead of the line's 0.7
    assert seen[-1] == 1.0


@pytest.mark.parametrize("energy", [math.nan, math.inf])
def test_an_energy_that_is_no_number_leaves_the_trend_alone(energy):
    # A running mean that once took a NaN would keep it for the rest of training.
    it = schedule()
    for value in (2.0, 1.8, energy):
        it.update(value)
    assert float(it.trend.value) == pytest.approx(0.001, rel=1e-5)
    assert float(it.t.value) == pytest.approx(0.52)


def distiller(total_steps=10, **kwargs):
    energy = kd.TAIDEnergy(total_steps=total_steps, rate=0.0)
    model = kd.BetaKDDistiller(linear_model(0), linear_model(1), {"taid": energy})
    model.compile(optimizer=keras.optimizers.Adam(0.01, **kwargs))
    return model


def t_of(model):
    return float(model.schedules["taid"].t.value)


def test_t_advances_once_a_step_and_not_in_evaluate():
    model, (x, y, weight) = distiller(), token_batch()
    for expected in (0.4, 0.46, 0.52):
        model.train_on_batch(x, y, weight)
        assert t_of(model) == pytest.approx(expected)
    results = model.evaluate(x, y, sample_weight=weight, return_dict=True, verbose=0)
    assert t_of(model) == pytest.approx(0.52)
    assert results["taid_t"] == pytest.approx(0.52)


@pytest.mark.traced
def test_t_advances_once_for_all_batches_of_an_optimizer_step():
    model, (x, y, weight) = distiller(gradient_accumulation_steps=2), token_batch()
    for expected in (0.4, 0.4, 0.46, 0.46, 0.52):
        model.train_on_batch(x, y, weight)
        assert t_of(model) == pytest.approx(expected)


@pytest.mark.traced
def test_t_moves_in_fit_and_resumes_where_it_was_saved(tmp_path):
    x, y, weight = token_batch()

    def fit(model, epochs):
        model.fit(x, y, sample_weight=weight, epochs=epochs, verbose=0, shuffle=False)

    whole, first, second = distiller(), distiller(), distiller()
    fit(whole, 6)
    fit(first, 3)
    first.save_weights(tmp_path / "half.weights.h5")
    second.load_weights(tmp_path / "half.weights.h5")
    fit(second, 3)
    assert t_of(whole) == pytest.approx(0.7)
    assert t_of(second) == t_of(whole)
    for a, b in zip(whole.student.weights, second.student.weights, strict=True):
        np.testing.assert_allclose(
            *(keras.ops.convert_to_numpy(w) for w in (a, b)), rtol=1e-6, atol=1e-7
        )


@pytest.mark.parametrize("form", kept(["divergence", "cross_entropy"], "divergence"))
@pytest.mark.one_of_two("jax")
def test_the_fused_head_reads_the_t_of_the_step(form):
    # A t that a compiler took for a constant would show after the first step.
    histories = []
    for fused in (True, False):
        keras.utils.set_random_seed(3)
        model = kd.BetaKDDistiller(
            tiny_gemma3(width=12),
            tiny_gemma3(),
            kd.TAIDEnergy(total_steps=4, form=form),
            fused=fused,
        )
        model.compile(optimizer=keras.optimizers.Adam(1e-2))
        options = {"batch_size": 2, "epochs": 3, "shuffle": False, "verbose": 0}
        histories.append(model.fit(vqa_records(), **options).history)
    assert histories[0]["taid_t"][0] < histories[0]["taid_t"][-1]
    for name, values in histories[0].items():
        np.testing.assert_allclose(values, histories[1][name], rtol=2e-4, atol=1e-6)


@pytest.mark.pytorch
def test_the_archive_keeps_t_and_the_schedule(tmp_path):
    model, (x, y, weight) = distiller(), token_batch()
    for _ in range(3):
        model.train_on_batch(x, y, weight)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert t_of(loaded) == t_of(model)
    assert loaded.energies["taid"].get_config() == model.energies["taid"].get_config()
    loaded.train_on_batch(x, y, weight)
    assert t_of(loaded) == pytest.approx(0.58)


def test_at_the_end_the_energy_is_the_forward_kl():
    # 0 * -inf made NaN of a class that the student excludes.
    energy = kd.TAIDEnergy(total_steps=1)
    energy.schedule.t.assign(1.0)
    teacher = np.array([[1.0, 2.0, 0.0], [1.0, 2.0, -np.inf]], "float32")
    student = np.array([[0.5, -np.inf, 0.0], [0.0, 0.5, 0.0]], "float32")
    values = keras.ops.convert_to_numpy(energy.call(teacher, student))
    expected = kd.ForwardKLEnergy().call(teacher, student)
    np.testing.assert_allclose(values, keras.ops.convert_to_numpy(expected), rtol=1e-6)
    assert values[0] == np.inf


def test_at_agreement_the_energy_is_exactly_zero():
    """It was once up to 1e-13, since the target was log q up to rounding."""
    logits = np.random.default_rng(0).normal(scale=3.0, size=(50, 9)).astype("float32")
    energy = kd.TAIDEnergy(10, start=0.3, temperature=4.0)
    assert not as_array(energy.call(logits, logits)).any()


def test_models_without_a_common_class_are_infinitely_far_apart():
    """The energy was once NaN, which a weight of 0 does not remove."""
    teacher = np.array([[0.0, 1.0, -math.inf, -math.inf]], "float32")
    student = teacher[:, ::-1].copy()
    assert float(kd.TAIDEnergy(10)(teacher, student)) == math.inf


@pytest.mark.parametrize(
    "arguments",
    [
        {"total_steps": 0},
        {"total_steps": 1.5},
        {"total_steps": 5, "start": 0.8, "end": 0.7},
        {"total_steps": 5, "end": 1.1},
        {"total_steps": 5, "momentum": 1.0},
        {"total_steps": 5, "rate": -1.0},
        {"total_steps": 5, "form": "ce"},
    ],
)
@pytest.mark.pytorch
def test_invalid_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="must"):
        kd.TAIDEnergy(**arguments)
