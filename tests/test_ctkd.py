"""CTKD: its temperature is learned against the student, slowly at first."""

import json
import math
import os

import keras
import numpy as np
import pytest
from gradients import value_and_grad
from keras import ops
from marks import kept
from plain_models import linear_model, token_batch
from tiny_models import tiny_gemma3, vqa_records

import keras_betakd as kd
from keras_betakd.energies.ctkd_temperature import reversed_gradient

pytestmark = pytest.mark.backends

RNG = np.random.default_rng(4)
TEACHER, STUDENT = 2 * RNG.normal(size=(2, 3, 5)), RNG.normal(size=(2, 3, 5))


def softmax64(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def energy64(teacher, student, temperature, power=2, form="divergence"):
    p, q = softmax64(teacher / temperature), softmax64(student / temperature)
    ratio = np.log(p / q) if form == "divergence" else -np.log(q)
    return temperature**power * np.sum(p * ratio, axis=-1)


@pytest.mark.parametrize("form", ["divergence", "cross_entropy"])
@pytest.mark.parametrize("power", [2.0, 1.0])
def test_value_and_gradient_against_float64(form, power):
    energy = kd.CTKDEnergy(10, initial_temperature=3.0, power=power, form=form)
    teacher = ops.convert_to_tensor(TEACHER, "float32")
    value, (gradient,) = value_and_grad(
        lambda x: ops.sum(energy.call(teacher, x)), STUDENT.astype("float32")
    )
    expected = energy64(TEACHER, STUDENT, 3.0, power, form).sum()
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    gap = softmax64(STUDENT / 3) - softmax64(TEACHER / 3)
    np.testing.assert_allclose(gradient, 3.0 ** (power - 1) * gap, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_the_gradient_of_theta_is_reversed(strength):
    """Without the reversal, as in the code released with Beta-KD, the temperature
    learns to make the loss small instead of large."""
    energy = kd.CTKDEnergy(10, initial_temperature=3.0)
    energy.schedule.strength.assign(strength)
    theta = math.log(2 / 18)

    def loss(x):
        temperature = energy.schedule.temperature(x)
        teacher, student = (
            ops.convert_to_tensor(z, "float32") for z in (TEACHER, STUDENT)
        )
        return ops.sum(energy.at(teacher, student, temperature))

    value, (gradient,) = value_and_grad(loss, np.zeros(1, "float32"))
    np.testing.assert_allclose(value, energy64(TEACHER, STUDENT, 3.0).sum(), rtol=1e-5)

    def at(theta):
        return energy64(TEACHER, STUDENT, 1 + 20 / (1 + math.exp(-theta))).sum()

    true = (at(theta + 1e-5) - at(theta - 1e-5)) / 2e-5
    np.testing.assert_allclose(gradient[0], -strength * true, rtol=1e-3, atol=1e-6)


def test_reversal_does_not_change_the_value():
    x = ops.convert_to_tensor(RNG.normal(size=100), "float32")
    np.testing.assert_array_equal(
        ops.convert_to_numpy(reversed_gradient(x, 0.37)), ops.convert_to_numpy(x)
    )


def test_theta_moves_faster_by_its_multiplier():
    """At a rate of 2e-5 a plain variable would need 50,000 steps to move by one."""
    temperatures = []
    for multiplier, raw in ((1.0, 0.5), (500.0, 0.001)):
        energy = kd.CTKDEnergy(10, multiplier=multiplier)
        energy.schedule.raw.assign(raw)
        temperatures.append(float(energy.schedule.temperature()))
    expected = 1 + 20 / (1 + math.exp(-(math.log(1 / 19) + 0.5)))
    np.testing.assert_allclose(temperatures, expected, rtol=1e-5)


def mlp_energy(units=(4,), **options):
    energy = kd.CTKDMLPEnergy(10, classes=5, units=units, **options)
    rng = np.random.default_rng(2)
    network = energy.schedule.network
    network.set_weights([rng.normal(size=w.shape) for w in network.get_weights()])
    return energy


def temperature64(network, teacher, student, low=1.0, high=21.0):
    *hidden, (kernel, bias) = [layer.get_weights() for layer in network.layers]
    x = np.concatenate([student, teacher], axis=-1)
    for k, b in hidden:
        x = np.maximum(x @ k + b, 0)
    return low + (high - low) / (1 + np.exp(-(x @ kernel + bias)[..., 0]))


def test_a_predicted_temperature_against_float64():
    """The student's gradient must not flow through the temperature, which it could use
    to lower the loss."""
    energy = mlp_energy()
    teacher = ops.convert_to_tensor(TEACHER, "float32")
    value, (gradient,) = value_and_grad(
        lambda x: ops.sum(energy.call(teacher, x)), STUDENT.astype("float32")
    )
    t = temperature64(energy.schedule.network, TEACHER, STUDENT)[..., None]
    assert t.std() > 0.1
    p, q = softmax64(TEACHER / t), softmax64(STUDENT / t)
    expected = t[..., 0] ** 2 * np.sum(p * np.log(p / q), axis=-1)
    np.testing.assert_allclose(value, expected.sum(), rtol=1e-4)
    np.testing.assert_allclose(gradient, t * (q - p), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("make", [lambda: kd.CTKDEnergy(10), mlp_energy])
def test_excluded_classes_and_agreement(make):
    energy = make()
    energy.schedule.strength.assign(1.0)
    teacher, student = TEACHER.copy(), STUDENT.copy()
    teacher[..., 2] = student[..., 2] = -np.inf
    fixed = ops.convert_to_tensor(teacher, "float32")
    value, (gradient,) = value_and_grad(
        lambda x: ops.sum(energy.call(fixed, x)), student.astype("float32")
    )
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[..., 2], 0)
    if isinstance(energy, kd.CTKDEnergy):
        kept = [0, 1, 3, 4]
        expected = energy64(teacher[..., kept], student[..., kept], 2.0).sum()
        np.testing.assert_allclose(value, expected, rtol=1e-5)
    same = ops.convert_to_numpy(energy.call(fixed, fixed))
    np.testing.assert_allclose(same, 0.0, atol=1e-6)


def test_reference_values():
    """The numbers of the code released with Beta-KD, with its own conventions."""
    folder = os.path.join(os.path.dirname(__file__), "golden")
    with np.load(os.path.join(folder, "energies.npz")) as file:
        golden = dict(file)
    with np.load(os.path.join(folder, "released.npz")) as file:
        golden.update(file)
    options = {"power": 1.0, "form": "cross_entropy"}
    theta = 1 / (1 + math.exp(2))
    shared = kd.CTKDEnergy(
        1, initial_temperature=1 + 4 * theta, max_temperature=5.0, **options
    )
    options["power"] = 0.0
    predicted = kd.CTKDMLPEnergy(
        1, classes=11, units=(8, 4), min_temperature=0.5, max_temperature=4.0, **options
    )
    names = [f"ctkd_mlp/temperature_mlp.{i}" for i in (0, 3, 6)]
    predicted.schedule.network.set_weights(
        [x for n in names for x in (golden[n + ".weight"].T, golden[n + ".bias"])]
    )
    for case in ("a_generic", "b_scale_gap", "d_sharp_teacher", "j_near_identical"):
        teacher, student, mask = (
            golden[f"{case}/in/{name}"]
            for name in ("teacher_logits", "student_logits", "mask")
        )
        for name, energy in (("ctkd", shared), ("ctkd-mlp", predicted)):
            value = float(energy(teacher, student, sample_weight=mask))
            expected = golden[f"{case}/ref/{name}"]
            np.testing.assert_allclose(value, expected, rtol=2e-6, err_msg=case)


# In a distiller


def distiller(energy=None, optimizer=None, **options):
    energy = energy or kd.CTKDEnergy(10, multiplier=1.0)
    model = kd.BetaKDDistiller(
        linear_model(0), linear_model(1), {"ctkd": energy}, **options
    )
    model.compile(optimizer=optimizer or keras.optimizers.Adam(0.01))
    return model


def state(model):
    schedule = model.schedules["ctkd"]
    return [float(v.value) for v in (schedule.strength, schedule.raw)]


@pytest.mark.traced
@pytest.mark.pytorch
def test_the_curriculum_and_the_temperature_over_200_steps():
    """The reversal follows its cosine, and from then on the temperature moves to where
    the task is harder, not easier."""
    model, (x, y, weight) = distiller(kd.CTKDEnergy(100, multiplier=1.0)), token_batch()
    strengths, temperatures = [], []
    for _ in range(200):
        logs = model.train_on_batch(x, y, weight, return_dict=True)
        strengths.append(state(model)[0])
        temperatures.append(float(logs["ctkd_temperature"]))
    k = np.minimum(np.arange(1, 201), 100)
    np.testing.assert_allclose(
        strengths, (1 - np.cos(np.pi * k / 100)) / 2, rtol=1e-4, atol=1e-6
    )
    energy = model.energies["ctkd"]
    assert temperatures[0] == pytest.approx(2.0, rel=1e-5)
    outputs = [
        np.asarray(ops.convert_to_numpy(m(x))) for m in (model.teacher, model.student)
    ]
    at = [float(np.mean(energy64(*outputs, t))) for t in (2.0, temperatures[-1])]
    assert abs(temperatures[-1] - 2.0) > 0.1
    assert at[1] > at[0]
    assert any(v is energy.schedule.raw for v in model.trainable_variables)


def test_state_advances_once_a_step_and_not_in_evaluate():
    model, (x, y, weight) = distiller(), token_batch()
    assert state(model)[0] == 0.0
    model.train_on_batch(x, y, weight)
    before = state(model)
    assert before[0] == pytest.approx((1 - math.cos(math.pi / 10)) / 2, rel=1e-5)
    model.evaluate(x, y, sample_weight=weight, verbose=0)
    assert state(model) == before


def test_theta_is_left_alone_by_weight_decay():
    optimizer = keras.optimizers.AdamW(0.01, weight_decay=10.0)
    model, (x, y, weight) = distiller(optimizer=optimizer), token_batch()
    before = state(model)[1]
    model.train_on_batch(x, y, weight)  # without reversal yet
    assert state(model)[1] == before


@pytest.mark.pytorch
@pytest.mark.parametrize("name", ["ctkd", "ctkd_mlp"])
def test_saved_and_resumed(name, tmp_path):
    x, y, weight = token_batch()
    classes = y.shape[-1] if y.ndim > 2 else linear_model(0).output_shape[-1]

    def make():
        keras.utils.set_random_seed(1)
        energy = kd.CTKDEnergy(5, multiplier=2.0)
        if name == "ctkd_mlp":
            energy = kd.CTKDMLPEnergy(5, classes=classes, units=(3,))
        return distiller(energy)

    def fit(model, epochs):
        model.fit(x, y, sample_weight=weight, epochs=epochs, verbose=0, shuffle=False)

    whole, first, second = make(), make(), make()
    fit(whole, 6)
    fit(first, 3)
    first.save_weights(tmp_path / "half.weights.h5")
    first.save(tmp_path / "half.keras")
    second.load_weights(tmp_path / "half.weights.h5")
    third = keras.saving.load_model(tmp_path / "half.keras")
    start = make().schedules["ctkd"].get_weights()
    for model in (second, third):
        fit(model, 3)
        pairs = zip(
            whole.schedules["ctkd"].get_weights(),
            model.schedules["ctkd"].get_weights(),
            strict=True,
        )
        for a, b in pairs:
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    assert any(
        (a != b).any()
        for a, b in zip(start, whole.schedules["ctkd"].get_weights(), strict=True)
        if a.size > 1 or name == "ctkd"
    )


@pytest.mark.parametrize("image", kept([False, True], True))
@pytest.mark.one_of_two("jax")
def test_the_fused_head_trains_the_temperature_too(image):
    histories = []
    for fused in (True, False):
        keras.utils.set_random_seed(3)
        energy = kd.CTKDEnergy(3, multiplier=2.0)
        energies = {
            "kl": kd.ForwardKLEnergy(),
            "ctkd": energy,
            "tv": kd.ReverseKLEnergy(),
        }
        if image:
            energies["ctkd"] = kd.ImageTokenEnergy(energy)
        model = kd.BetaKDDistiller(
            tiny_gemma3(width=12), tiny_gemma3(), energies, fused=fused
        )
        model.compile(optimizer=keras.optimizers.SGD(0.02))
        options = {"batch_size": 2, "epochs": 3, "shuffle": False, "verbose": 0}
        histories.append(model.fit(vqa_records(), **options).history)
    assert len(set(histories[0]["ctkd_temperature"])) == 3
    for name, values in histories[0].items():
        np.testing.assert_allclose(values, histories[1][name], rtol=3e-4, atol=1e-5)


def test_a_network_cannot_be_fused():
    model = kd.BetaKDDistiller(
        tiny_gemma3(width=12),
        tiny_gemma3(),
        {"ctkd": kd.CTKDMLPEnergy(3, classes=160)},
        fused=True,
    )
    with pytest.raises(ValueError, match=r"energies that need logits: \['ctkd'\]"):
        model.compile()


@pytest.mark.parametrize(
    "make",
    [
        lambda: kd.CTKDEnergy(10, initial_temperature=3.0, name="x", multiplier=2.0),
        lambda: kd.CTKDMLPEnergy(10, classes=5, units=(3, 2), form="cross_entropy"),
    ],
)
def test_configuration_survives(make):
    energy = make()
    saved = json.loads(json.dumps(keras.saving.serialize_keras_object(energy)))
    again = keras.saving.deserialize_keras_object(saved)
    assert type(again) is type(energy)
    assert again.get_config() == energy.get_config()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kd.CTKDEnergy(0), "total_steps"),
        (lambda: kd.CTKDEnergy(5, initial_temperature=1.0), "initial_temperature"),
        (
            lambda: kd.CTKDEnergy(5, min_temperature=3.0, max_temperature=2.0),
            "max_temp",
        ),
        (lambda: kd.CTKDEnergy(5, form="ce"), "form"),
        (lambda: kd.CTKDMLPEnergy(5, classes=0), "classes"),
        (lambda: kd.CTKDMLPEnergy(5, classes=5, units=(0,)), "units"),
        (lambda: kd.CTKDMLPEnergy(5, classes=4)(TEACHER, STUDENT), "classes=4"),
    ],
)
def test_invalid_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
