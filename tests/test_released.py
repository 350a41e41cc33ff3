"""The released losses and weightings against the numbers of the released code."""

import os

import numpy as np
import pytest
from gradients import value_and_grad
from keras import ops
from plain_models import linear_model, token_batch

import keras_betakd as kd
from keras_betakd import released_energy, released_weighting
from keras_betakd.objective import log_beta_penalty, row_weights, weighted_energy
from keras_betakd.released import _ENERGIES

FOLDER = os.path.join(os.path.dirname(__file__), "golden")
GOLDEN = {}
for _name in ("energies.npz", "released.npz"):
    with np.load(os.path.join(FOLDER, _name)) as _file:
        GOLDEN.update(_file)
CASES = ["a_generic", "b_scale_gap", "d_sharp_teacher", "e_row_masked", "f_labels_dkd"]
OPTIONS = {
    "taid": {"total_steps": 10},
    "ctkd": {"total_steps": 10},
    "ctkd-mlp": {"total_steps": 10, "classes": 11, "units": (8, 4)},
}


def inputs(case):
    names = ("teacher_logits", "student_logits", "mask", "targets")
    return [GOLDEN.get(f"{case}/in/{name}") for name in names]


def check(energy, case, released, gradient=True, scale=1.0):
    teacher, student, mask, targets = inputs(case)
    target = ops.convert_to_tensor(teacher)
    if energy.needs_labels:
        target = {"logits": target, "labels": targets}
    value, (found,) = value_and_grad(
        lambda x: energy(target, x, sample_weight=mask), student
    )
    expected = GOLDEN[f"{case}/ref/{released}"]
    np.testing.assert_allclose(scale * value, expected, rtol=3e-6, err_msg=released)
    if gradient:
        expected = GOLDEN[f"{case}/refgrad/{released}"]
        np.testing.assert_allclose(scale * found, expected, rtol=1e-4, atol=3e-7)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "name",
    [
        *("fkl", "rkl", "js", "tvd", "mse", "mse-probs", "cosine", "cosine-probs"),
        *("sfkl", "srkl", "ctkd"),
    ],
)
def test_the_same_numbers_and_gradients(name, case):
    check(released_energy(name, **OPTIONS.get(name, {})), case, name)


@pytest.mark.parametrize("case", CASES)
def test_ctkd_mlp_gives_the_same_numbers_at_the_same_weights(case):
    energy = released_energy("ctkd-mlp", **OPTIONS["ctkd-mlp"])
    layers = [f"ctkd_mlp/temperature_mlp.{i}" for i in (0, 3, 6)]
    energy.schedule.network.set_weights(
        [x for n in layers for x in (GOLDEN[n + ".weight"].T, GOLDEN[n + ".bias"])]
    )
    # Their student also learns through the temperature: another gradient.
    check(energy, case, "ctkd-mlp", gradient=False)


@pytest.mark.parametrize("case", CASES)
def test_temperature_two(case):
    for name in ("mse-probs", "cosine-probs"):
        check(released_energy(name, temperature=2.0), case, f"{name}_T2")
    check(released_energy("cosine"), case, "cosine_T2")
    check(released_energy("mse"), case, "mse_T2", scale=4.0)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("t", [0.4, 0.7])
def test_taid_at_the_same_t(case, t):
    energy = released_energy("taid", total_steps=10)
    assert float(energy.schedule.t.value) == pytest.approx(0.4)
    energy.schedule.t.assign(t)
    check(energy, case, f"taid_t{t}")


def test_dkd_at_aligned_labels():
    check(released_energy("dkd"), "f_labels_dkd", "dkd_fn")


@pytest.mark.parametrize("case", CASES)
def test_align_kd_and_kl_up_to_what_they_count(case):
    teacher, student, mask, _ = inputs(case)
    value = float(released_energy("align-kd")(teacher, student))
    # In float16 there.
    np.testing.assert_allclose(value, GOLDEN[f"{case}/ref/align-kd"], rtol=3e-3)
    value = mask.shape[1] * float(released_energy("kl")(teacher, student))
    np.testing.assert_allclose(value, GOLDEN[f"{case}/ref/kl"], rtol=1e-5)


def test_adaptive_kl_is_not_the_released_one():
    """The released one's gradient is unbounded as the student comes close."""
    teacher, student, mask, _ = inputs("j_near_identical")
    _, (gradient,) = value_and_grad(
        lambda x: released_energy("adaptive_kl")(
            ops.convert_to_tensor(teacher), x, sample_weight=mask
        ),
        student,
    )
    released = GOLDEN["j_near_identical/refgrad/adaptive_kl"]
    assert np.abs(released).max() > 1.0
    assert np.abs(gradient).max() < 1e-3


def test_every_name_is_in_the_docstring():
    for name in _ENERGIES:
        assert f"`{name}`" in released_energy.__doc__
        assert isinstance(released_energy(name, **OPTIONS.get(name, {})), kd.Energy)


# Weightings: cross-entropy, logits, features


def total(weighting, losses, log_betas):
    """The objective over three losses (3, B), from the layers of the weighting."""
    count = losses.shape[1]
    weights = row_weights(np.ones((count, 1), "float32"))
    arguments = released_weighting(weighting)
    dim = arguments["beta"].dim
    result = 0.0
    for loss, log_beta in zip(losses, log_betas, strict=True):
        log_beta = ops.convert_to_tensor(log_beta.reshape(-1, 1), "float32")
        loss = ops.convert_to_tensor(loss[:, None], "float32")
        result += float(weighted_energy(loss, log_beta, weights))
        result += float(log_beta_penalty(log_beta, weights, dim))
    return result


@pytest.mark.parametrize("case", range(5))
def test_task_weighting(case):
    losses = GOLDEN["weighting/scalar_losses"].reshape(3, 1)
    weight = GOLDEN[f"weighting/task/{case}/effective_weight"]
    expected = GOLDEN[f"weighting/task/{case}/total"] + 1.5 * np.log(2)
    value = total("task", losses, np.log(weight))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    beta = released_weighting("task")["beta"]
    assert beta.min_value - 1e-6 <= weight.min()
    assert weight.max() <= beta.max_value + 1e-4


def test_instance_weighting():
    """By each example's own losses; the released code gives all the batch's mean."""
    name = "weighting/instance/per_sample_losses_feat2d"
    losses = GOLDEN["weighting/per_sample_losses"]
    value = total("instance", losses, -GOLDEN[f"{name}/log_vars"].T)
    np.testing.assert_allclose(value, GOLDEN[f"{name}/total"], rtol=1e-5)


@pytest.mark.parametrize("name", ["equal", "task"])
def test_in_a_distiller(name):
    model = kd.BetaKDDistiller(
        linear_model(0),
        linear_model(1),
        [released_energy("fkl"), released_energy("cosine")],
        **released_weighting(name),
    )
    model.compile()
    x, y, weight = token_batch()
    logs = model.test_on_batch(x, y, weight, return_dict=True)
    logs = {k: float(v) for k, v in logs.items()}
    losses = logs["task_loss"], logs["forward_kl"], logs["cosine_logits"]
    expected = sum(losses)
    if name == "task":
        expected = 0.5 * expected + 1.5 * np.log(2)
    assert logs["loss"] == pytest.approx(expected, rel=1e-5)


def test_unknown_names_are_refused():
    """The released code falls back to another loss without a warning."""
    with pytest.raises(ValueError, match="must be one of .*'fkl'"):
        released_energy("forward-kl")
    with pytest.raises(ValueError, match="must be one of"):
        released_weighting("type2")
