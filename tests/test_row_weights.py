"""How much the rows of an energy count beside each other, by a callable of its beta."""

import json

import keras
import numpy as np
import pytest
from keras import ops
from marks import kept
from plain_models import linear_model, log_softmax64, token_batch
from test_features import numbers, pair, whole_and_resumed
from tiny_models import tiny_gemma3, vqa_records

import keras_betakd as kd
from keras_betakd.betas import TeacherOutputs
from keras_betakd.objective import weighted_sum

pytestmark = pytest.mark.backends


def emphasis(teacher, log_beta):
    """beta^(-1/2)."""
    return ops.exp(-0.5 * log_beta)


@keras.saving.register_keras_serializable("tests")
def entropy(teacher, log_beta):
    return teacher.uncertainty[..., 0]


class Given(kd.Beta):
    """The best beta of each example's energy, which is its feature."""

    uses_features = True

    def features_of(self, teacher):
        return teacher.rows

    def log_beta(self, features):
        return -ops.log(2.0 * features)


@pytest.mark.parametrize(
    "power, factors, pulls",
    [
        (
            0.5,
            [0.211830333509, 0.669866331401, 2.118303335090],
            [5.295758337724, 1.674665828504, 0.529575833772],
        ),
        (1.0, None, [0.675675675676] * 3),
    ],
)
def test_golden_numbers_of_emphasis(power, factors, pulls):
    """The weight v beta of the student where v = beta^-g / sum(w beta^-g)."""
    energy = ops.array([[0.02], [0.2], [2.0]])
    weights = ops.full((3, 1), 1 / 3)
    beta = Given(row_weights=lambda teacher, log_beta: ops.exp(-power * log_beta))
    teacher = TeacherOutputs(weights=weights, rows=energy)
    features = beta.features_of(teacher)
    rows = beta.weighted_rows(weights, features, teacher)
    if factors:
        found = ops.convert_to_numpy(3 * rows)[:, 0]
        np.testing.assert_allclose(found, factors, rtol=1e-5)
    log_beta = beta(rows, features=features)
    pull = ops.convert_to_numpy(3 * rows * ops.exp(log_beta))[:, 0]
    np.testing.assert_allclose(pull, pulls, rtol=1e-5)
    expected = -0.5 * float(weighted_sum(log_beta, rows))
    np.testing.assert_allclose(float(beta.losses[0]), expected, rtol=1e-6)


@pytest.mark.parametrize("fused", kept([True, False], True))
def test_rows_weighted_by_the_teachers_entropy(fused):
    """Against separate runs of the models, in float64; another energy is as ever."""
    energies = {"some": kd.ReverseKLEnergy(), "all": kd.ReverseKLEnergy()}
    betas = {"some": kd.TaskBeta(row_weights=entropy), "all": kd.TaskBeta()}
    distiller = pair(energies, tiny_gemma3(16), beta=betas, fused=fused)
    inputs, _, weight = distiller.preprocessor(vqa_records(3))
    logs = numbers(distiller.test_on_batch(vqa_records(3), return_dict=True))
    logs_of = {}
    for role in ("teacher", "student"):
        x = {**inputs["student"], **inputs[role]}
        logits = ops.convert_to_numpy(getattr(distiller, role)(x)).astype("float64")
        rows = inputs[f"{role}_positions"][..., None]
        logs_of[role] = log_softmax64(np.take_along_axis(logits, rows, axis=1))
    log_p, log_q = logs_of["teacher"], logs_of["student"]
    kl = (np.exp(log_q) * (log_q - log_p)).sum(-1)
    weights = (weight != 0) / (weight != 0).sum(1, keepdims=True) / 3
    np.testing.assert_allclose(logs["all"], (weights * kl).sum(), rtol=1e-4)
    weights = weights * -(np.exp(log_p) * log_p).sum(-1)
    weights /= weights.sum()
    np.testing.assert_allclose(logs["some"], (weights * kl).sum(), rtol=1e-4)
    assert abs(logs["some"] - logs["all"]) > 1e-3 * logs["all"]


@pytest.mark.pytorch
def test_features_by_a_callable_are_given_the_uncertainty_too():
    """`row_weights` were, but as `features` the same function met `None`."""
    seen = []

    def given(teacher):
        seen.append(teacher)
        return ops.mean(teacher.uncertainty, axis=1)

    beta = kd.InstanceBeta(features=given)
    distiller = pair(kd.ReverseKLEnergy(), tiny_gemma3(16), beta=beta)
    distiller.test_on_batch(vqa_records(3))
    probs = ops.softmax(seen[-1].logits, axis=-1)
    entropy = -ops.sum(probs * ops.log(probs), axis=-1)
    found = ops.convert_to_numpy(seen[-1].uncertainty[..., 0])
    np.testing.assert_allclose(found, ops.convert_to_numpy(entropy), rtol=1e-5)


@pytest.mark.pytorch
def test_it_trains_is_saved_and_goes_on(tmp_path):
    def make():
        keras.utils.set_random_seed(0)
        energies = [kd.ReverseKLEnergy(), kd.FeatureMSEEnergy()]
        betas = [
            kd.TokenBeta(row_weights=emphasis),
            kd.InstanceBeta(row_weights=example),
        ]
        return pair(energies, tiny_gemma3(16), beta=betas)

    def example(teacher, log_beta):
        return ops.max(teacher.uncertainty[..., 1], axis=1, keepdims=True)

    whole, rest = whole_and_resumed(make, tmp_path / "half.weights.h5")
    assert whole["feature_mse"][-1] < whole["feature_mse"][0]
    for name in ("reverse_kl", "reverse_kl_beta", "feature_mse", "loss"):
        np.testing.assert_allclose(rest[name], whole[name][2:], rtol=1e-5)


@pytest.mark.pytorch
def test_masked_rows_may_hold_anything():
    def nan_where_masked(teacher, log_beta):
        return ops.where(teacher.weights != 0, 1.0, float("nan"))

    weights = ops.array([[0.5, 0.0], [0.25, 0.25]])
    beta = kd.TaskBeta(row_weights=nan_where_masked)
    rows = beta.weighted_rows(weights, None, TeacherOutputs(weights=weights))
    np.testing.assert_array_equal(
        ops.convert_to_numpy(rows), ops.convert_to_numpy(weights)
    )


@pytest.mark.pytorch
def test_one_beta_with_a_lambda_serves_several_energies():
    """The copies were made by a configuration, which holds no function."""
    energies = [kd.ReverseKLEnergy(), kd.ForwardKLEnergy()]
    beta = kd.InstanceBeta(
        features=lambda teacher: teacher.logits[:, 0],
        row_weights=lambda teacher, log_beta: ops.exp(-log_beta),
    )
    betas = pair(energies, tiny_gemma3(16), beta=beta).betas.values()
    assert {b.row_weights for b in betas} == {beta.row_weights}
    assert {b.features for b in betas} == {beta.features}


@pytest.mark.pytorch
def test_configuration_survives():
    for beta in (kd.TaskBeta(row_weights=entropy), kd.FixedBeta(row_weights=entropy)):
        saved = json.loads(json.dumps(keras.saving.serialize_keras_object(beta)))
        assert keras.saving.deserialize_keras_object(saved).row_weights is entropy
    assert "row_weights" not in kd.TaskBeta().get_config()  # files of before load


@pytest.mark.pytorch
def test_what_cannot_be_weighted_is_refused():
    with pytest.raises(ValueError, match="`row_weights` must be `None`, or a callable"):
        kd.TaskBeta(row_weights=[1.0, 2.0])
    with pytest.raises(ValueError, match='"task_weight".*entropy'):
        pair(kd.ReverseKLEnergy(), task_beta=kd.TaskBeta(row_weights=entropy))
    energies = {"mse": kd.FeatureMSEEnergy()}
    distiller = pair(energies, beta=kd.TaskBeta(row_weights=entropy))
    with pytest.raises(ValueError, match=r"one factor for each example.*\(3, 6\)"):
        distiller.test_on_batch(vqa_records(3))


@pytest.mark.pytorch
def test_as_many_answer_rows_as_image_tokens_are_not_confused():
    """Four of each: factors of answer rows would have weighed image tokens."""
    teacher, student = tiny_gemma3(16), tiny_gemma3()
    distiller = kd.BetaKDDistiller(
        teacher,
        student,
        {"image": kd.ImageTokenEnergy(kd.ForwardKLEnergy())},
        kd.TaskBeta(row_weights=entropy),
        max_response_length=4,
    )
    distiller.compile(optimizer="sgd")
    with pytest.raises(ValueError, match="one factor for each example"):
        distiller.test_on_batch(vqa_records(3))


NO_WEIGHTS = {
    "nan": float("nan"),
    "negative": -1.0,
}


@pytest.mark.pytorch
@pytest.mark.parametrize("factor", NO_WEIGHTS.values(), ids=NO_WEIGHTS)
@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_a_factor_that_is_no_weight_is_reported(factor, policy):
    """The step was skipped without a word, or trained towards a larger energy."""
    calls = []

    def second_is_wrong(teacher, log_beta):
        calls.append(1)
        ones = ops.ones_like(teacher.weights)
        return ones * factor if len(calls) == 2 else ones

    distiller = kd.BetaKDDistiller(
        linear_model(0),
        linear_model(1),
        {"kl": kd.ForwardKLEnergy()},
        kd.TaskBeta(row_weights=second_is_wrong),
    )
    distiller.compile(optimizer="sgd", on_nonfinite=policy)
    x, y, weight = token_batch()
    message = "Weights of 'kl' were not finite or negative.* in 1 batches"
    if policy == "raise":
        with pytest.raises(kd.NonFiniteError, match=message):
            distiller.fit(x, y, 2, sample_weight=weight, verbose=0)
    else:
        with pytest.warns(RuntimeWarning, match=message):
            distiller.fit(x, y, 2, sample_weight=weight, verbose=0)
    assert np.isfinite(distiller.student.get_weights()[0]).all()


@pytest.mark.pytorch
def test_a_log_beta_that_is_not_finite_is_reported():
    class Wrong(kd.Beta):
        def log_beta(self, features):
            return ops.convert_to_tensor(float("inf"))

    models = linear_model(0), linear_model(1)
    distiller = kd.BetaKDDistiller(*models, {"kl": kd.ForwardKLEnergy()}, Wrong())
    distiller.compile(optimizer="sgd", on_nonfinite="raise")
    with pytest.raises(kd.NonFiniteError, match="'kl'.*its log beta was not finite"):
        distiller.fit(*token_batch()[:2], verbose=0)


def test_log_beta_is_that_of_each_example():
    """A `TaskBeta` gave a number without axes, which no function of (B, 1) fits."""
    beta = kd.TaskBeta(row_weights=emphasis)
    weights = ops.array([[0.5, 0.0], [0.25, 0.25]])
    rows = beta.weighted_rows(weights, None, TeacherOutputs(weights=weights))
    np.testing.assert_allclose(
        ops.convert_to_numpy(rows), ops.convert_to_numpy(weights), rtol=1e-6
    )


@pytest.mark.pytorch
@pytest.mark.parametrize(
    "beta, made, form",
    [
        (kd.TokenBeta, lambda t: ops.mean(t.logits, axis=1), r"\(B, K, F\)"),
        (kd.TokenBeta, lambda t: t.logits[..., 0], r"\(B, K, F\)"),
        (kd.InstanceBeta, lambda t: ops.mean(t.logits, axis=1)[:1], r"\(B, F\)"),
        (kd.InstanceBeta, lambda t: t.logits, r"\(B, F\)"),
        (kd.InstanceBeta, lambda t: None, r"\(B, F\)"),
    ],
)
def test_features_of_a_wrong_shape_are_refused(beta, made, form):
    """Some trained in silence, where the batch had as many examples as rows or one."""
    distiller = kd.BetaKDDistiller(
        linear_model(1), linear_model(2), kd.ForwardKLEnergy(), beta(features=made)
    )
    distiller.compile(optimizer="sgd")
    x, y, weight = token_batch()
    with pytest.raises(ValueError, match=f"`features` must return a tensor of {form}"):
        distiller.train_on_batch(x[:3], y[:3], weight[:3])
