"""Energies between features: their numbers, and what a distiller compares."""

import json

import keras
import numpy as np
import pytest
from keras import ops
from test_gemma3_pair import set_weights
from tiny_models import tiny_gemma3, tiny_gemma_text, tiny_pali_gemma, vqa_records

import keras_betakd as kd
from keras_betakd.backends import value_and_gradient
from keras_betakd.distillation.token_grids import resized
from keras_betakd.distillation.token_weights import spread
from keras_betakd.models.hooks import recorded

pytestmark = pytest.mark.backends


def value_and_student_gradient(energy, teacher, student):
    """Values of an energy, and the gradient of their sum."""
    teacher = ops.convert_to_tensor(teacher, "float32")
    found = value_and_gradient(
        lambda x: energy.call(teacher, x), ops.convert_to_tensor(student, "float32")
    )
    return [ops.convert_to_numpy(x) for x in found]


RNG = np.random.default_rng(11)
T, S = RNG.normal(size=(2, 3, 4, 5)), RNG.normal(size=(2, 3, 4, 5))


def unit64(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def relation64(teacher, student):
    r = [
        np.einsum("...id,...jd->...ij", unit64(x), unit64(x))
        for x in (teacher, student)
    ]
    top = (r[0] * r[1]).sum((-1, -2))
    return 1 - top / np.sqrt((r[0] ** 2).sum((-1, -2)) * (r[1] ** 2).sum((-1, -2)))


EXPECTED = {
    "FeatureMSEEnergy": lambda t, s: np.mean((t - s) ** 2, axis=-1),
    "FeatureCosineEnergy": lambda t, s: 1 - np.sum(unit64(t) * unit64(s), axis=-1),
    "FeatureRelationEnergy": relation64,
    "AttentionEnergy": lambda t, s: np.sum((t - s) ** 2, axis=-1),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_value_and_gradient_against_float64(name):
    energy, expected = getattr(kd, name)(), EXPECTED[name]
    value, gradient = value_and_student_gradient(energy, T, S)
    np.testing.assert_allclose(value, expected(T, S), rtol=2e-5, atol=1e-6)
    step, expected_gradient = 1e-5, np.zeros_like(S)
    for index in np.ndindex(*S.shape):
        up, down = S.copy(), S.copy()
        up[index], down[index] = up[index] + step, down[index] - step
        expected_gradient[index] = (expected(T, up) - expected(T, down)).sum() / (
            2 * step
        )
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("name", EXPECTED)
def test_agreement_is_exactly_zero(name):
    value, gradient = value_and_student_gradient(getattr(kd, name)(), T, T)
    np.testing.assert_array_equal(value, np.zeros_like(value))
    np.testing.assert_allclose(gradient, 0.0, atol=1e-7)


def test_relations_do_not_depend_on_scale_or_rotation():
    rotation, _ = np.linalg.qr(RNG.normal(size=(7, 7)))
    turned = 3 * np.concatenate([T, np.zeros((2, 3, 4, 2))], axis=-1) @ rotation
    value = kd.FeatureRelationEnergy()(T, turned)
    np.testing.assert_allclose(float(value), 0.0, atol=1e-6)


@pytest.mark.parametrize("name", ["FeatureCosineEnergy", "FeatureRelationEnergy"])
def test_a_vector_of_zeros_has_a_finite_gradient(name):
    value, gradient = value_and_student_gradient(getattr(kd, name)(), T, 0 * S)
    assert np.isfinite(value).all()
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", EXPECTED)
def test_masked_positions_change_nothing(name):
    energy = getattr(kd, name)()
    student = S.copy()
    student[1] = np.nan
    weight = np.array([1.0, 0.0]).reshape(2, 1)
    value = energy(T, student, sample_weight=weight)
    np.testing.assert_allclose(float(value), EXPECTED[name](T, S)[0].mean(), rtol=1e-5)


def test_projection_maps_the_student_to_the_teachers_width():
    energy = kd.FeatureMSEEnergy(widths=(2, 5))
    kernel, bias = RNG.normal(size=(2, 5)), RNG.normal(size=5)
    energy.projection.set_weights([kernel, bias])
    student = S[..., :2]
    expected = np.mean((T - (student @ kernel + bias)) ** 2)
    np.testing.assert_allclose(float(energy(T, student)), expected, rtol=1e-5)
    again = keras.saving.deserialize_keras_object(
        json.loads(json.dumps(keras.saving.serialize_keras_object(energy)))
    )
    assert again.widths == (2, 5)
    again.projection.set_weights(energy.projection.get_weights())
    np.testing.assert_allclose(float(again(T, student)), expected, rtol=1e-5)


@pytest.mark.parametrize("name", [*EXPECTED, "ImageTokenEnergy"])
@pytest.mark.pytorch
def test_configuration_survives(name):
    inner = [kd.ReverseKLEnergy(temperature=2.0)] if name == "ImageTokenEnergy" else []
    energy = getattr(kd, name)(*inner, name="x", dtype="float64")
    saved = json.loads(json.dumps(keras.saving.serialize_keras_object(energy)))
    assert saved["registered_name"] == f"keras_betakd>{name}"
    again = keras.saving.deserialize_keras_object(saved)
    assert again.get_config() == energy.get_config()
    if inner:
        assert again.energy.get_config() == inner[0].get_config()


def test_resizing_is_linear_interpolation_on_the_grid():
    tokens = RNG.normal(size=(2, 3, 16, 5)).astype("float32")
    small = ops.convert_to_numpy(resized(ops.convert_to_tensor(tokens), 4))
    # Antialiased bilinear, by half: each axis weighs (1, 3, 3, 1) / 8 inside.
    weights = np.array([[3, 3, 1, 0], [0, 1, 3, 3]]) / 7
    grid = tokens.reshape(2, 3, 4, 4, 5)
    expected = np.einsum("ia,jb,npabd->npijd", weights, weights, grid)
    np.testing.assert_allclose(small, expected.reshape(2, 3, 4, 5), atol=1e-5)
    with pytest.raises(ValueError, match="square grids"):
        resized(ops.zeros((1, 1, 6, 2)), 4)


def test_an_example_shares_its_weight_among_its_tokens():
    rows = ops.array([[0.3, 0.2], [0.25, 0.0], [0.25, 0.0]])
    mask = ops.array(
        [[True, True, True, False], [False] * 4, [True, False, True, True]]
    )
    weights = ops.convert_to_numpy(spread(rows, mask))
    expected = np.array([[2, 2, 2, 0], [0] * 4, [1, 0, 1, 1]]) / 9
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    nothing = spread(rows, ops.zeros((3, 4), dtype="bool"))
    np.testing.assert_array_equal(ops.convert_to_numpy(nothing), np.zeros((3, 4)))


# In a distiller


def some_energies(*names):
    """The energies of these names; compiling a step with all eight takes long."""
    every = {
        "cosine": kd.CosineProbsEnergy(),
        "mse": kd.FeatureMSEEnergy(),
        "states": kd.FeatureCosineEnergy(features="hidden_states"),
        "pooled": kd.FeatureCosineEnergy(features="image_hidden_states", align="pool"),
        "top": kd.FeatureMSEEnergy(top_tokens=2),
        "relation": kd.FeatureRelationEnergy(),
        "attention": kd.AttentionEnergy(),
        "image": kd.ImageTokenEnergy(kd.ForwardKLEnergy()),
    }
    return {name: every[name] for name in names}


def pair(energies, teacher=None, student=None, beta=None, **options):
    teacher = set_weights(teacher or tiny_gemma3(16, grid=4), 1)
    student = set_weights(student or tiny_gemma3(), 2)
    preprocessor = kd.DistillationPreprocessor(
        teacher.preprocessor, student.preprocessor, 6
    )
    distiller = kd.BetaKDDistiller(
        teacher,
        student,
        energies=energies,
        beta=beta or kd.TaskBeta(),
        preprocessor=preprocessor,
        **options,
    )
    for i, projection in enumerate(distiller.projections.values()):
        set_weights(projection, 5 + i)
    distiller.compile(optimizer=keras.optimizers.SGD(0.1))
    return distiller


def whole_and_resumed(make, path):
    """Histories of four epochs, and of the last two of a run that was saved between.

    Args:
        make: function that returns a distiller, the same each time.
        path: of the weights file.
    """

    def fit(distiller, epochs, begin=0):
        return distiller.fit(
            vqa_records(4), epochs=epochs, initial_epoch=begin, shuffle=False, verbose=0
        ).history

    whole, first, second = fit(make(), 4), make(), make()
    fit(first, 2)
    first.save_weights(path)
    second.load_weights(path)
    return whole, fit(second, 4, begin=2)


def numbers(logs):
    return {name: float(value) for name, value in logs.items()}


def features64(distiller, inputs):
    """Every feature of both models, each from a run of its own, in float64."""
    found = {}
    for role in ("student", "teacher"):
        model = getattr(distiller, role)
        x = {**inputs["student"], **inputs[role]}
        run = lambda f, x: ops.convert_to_numpy(f(x)).astype("float64")  # noqa: E731
        tokens = model.backbone.num_vision_tokens_per_image
        image = run(model.backbone.vision_encoder, x["images"])
        hidden = run(model.backbone, x)
        where = x["vision_indices"][:, :, None].astype(int)
        rows = inputs[f"{role}_positions"][:, :, None]
        found[role] = {
            "image": image.reshape(len(hidden), -1, tokens, image.shape[-1]),
            "states": np.take_along_axis(hidden, where, axis=1),
            "rows": np.take_along_axis(hidden, rows, axis=1),
        }
    return found


def test_numbers_against_separate_runs_in_float64():
    names = ("mse", "states", "pooled", "relation", "image")
    distiller = pair(some_energies(*names))
    inputs, _, weight = distiller.preprocessor(vqa_records(3))
    logs = numbers(distiller.test_on_batch(vqa_records(3), return_dict=True))
    found = features64(distiller, inputs)
    halve = np.array([[3, 3, 1, 0], [0, 1, 3, 3]]) / 7

    def shrink(x):
        grid = x.reshape(3, 4, 4, -1)
        return np.einsum("ia,jb,nabd->nijd", halve, halve, grid).reshape(3, 4, -1)

    def projected(name, x):
        kernel, bias = distiller.projections[name].get_weights()
        return x @ kernel + bias

    ours, theirs = found["student"], found["teacher"]
    mse = (shrink(theirs["image"]) - projected("mse", ours["image"][:, 0])) ** 2
    np.testing.assert_allclose(logs["mse"], mse.mean(), rtol=1e-4)
    rows = 1 - np.sum(
        unit64(theirs["rows"]) * unit64(projected("states", ours["rows"])), axis=-1
    )
    by_example = (rows * (weight != 0)).sum(1) / (weight != 0).sum(1)
    np.testing.assert_allclose(logs["states"], by_example.mean(), rtol=1e-4)
    pooled = 1 - np.sum(
        unit64(theirs["states"].mean(1))
        * unit64(projected("pooled", ours["states"].mean(1))),
        axis=-1,
    )
    np.testing.assert_allclose(logs["pooled"], pooled.mean(), rtol=1e-4)
    relation = relation64(shrink(theirs["states"]), ours["states"])
    np.testing.assert_allclose(logs["relation"], relation.mean(), rtol=1e-4)
    log_p, log_q = (
        ops.convert_to_numpy(
            ops.log_softmax(
                model.backbone.token_embedding(
                    ops.convert_to_tensor(states, "float32"), reverse=True
                )
            )
        ).astype("float64")
        for model, states in (
            (distiller.teacher, shrink(theirs["states"])),
            (distiller.student, ours["states"]),
        )
    )
    kl = np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)
    np.testing.assert_allclose(logs["image"], kl.mean(), rtol=1e-3)


@pytest.mark.parametrize(
    "grid, names",
    [
        pytest.param(
            2, ["cosine", "mse", "relation", "image"], marks=pytest.mark.pytorch
        ),
        (4, ["mse", "states", "pooled", "top", "attention"]),
    ],
    ids=["grid2", "grid4"],
)
@pytest.mark.one_of_two("tensorflow")
def test_fused_and_full_logits_train_alike(grid, names):
    runs = []
    for fused in (True, False):
        distiller = pair(
            some_energies(*names), teacher=tiny_gemma3(16, grid=grid), fused=fused
        )
        runs.append(
            [
                numbers(distiller.train_on_batch(vqa_records(3), return_dict=True))
                for _ in range(2)
            ]
        )
    for one, other in zip(*runs, strict=True):
        for name, value in one.items():
            np.testing.assert_allclose(value, other[name], rtol=2e-4, atol=1e-5)
    assert runs[0][0]["mse_beta"] != runs[0][1]["mse_beta"]


@pytest.mark.pytorch
def test_records_without_an_image_do_not_count():
    mixed = {k: list(v) for k, v in vqa_records(4).items()}
    for i in (1, 3):
        mixed["images"][i] = None
        mixed["prompts"][i] = mixed["prompts"][i].replace("<image>", "")
    with_images = {
        k: [v[0], v[2]] * 2 for k, v in mixed.items()
    }  # nothing to compile anew
    of_images = ("mse", "pooled", "top", "relation", "attention", "image")
    distiller = pair(some_energies(*of_images, "states"))
    some = numbers(distiller.test_on_batch(mixed, return_dict=True))
    rest = numbers(distiller.test_on_batch(with_images, return_dict=True))
    for name in of_images:
        np.testing.assert_allclose(some[name], rest[name], rtol=1e-4, err_msg=name)
    assert some["states"] != pytest.approx(rest["states"], rel=1e-4)


@pytest.mark.pytorch
def test_a_batch_without_images_leaves_beta_alone():
    records = {k: list(v) for k, v in vqa_records(3).items()}
    records["images"] = [None] * 3
    records["prompts"] = [p.replace("<image>", "") for p in records["prompts"]]
    distiller = pair({"answer": kd.ForwardKLEnergy(), "mse": kd.FeatureMSEEnergy()})
    before = [w.copy() for w in distiller.betas["mse"].get_weights()]
    kernel = distiller.projections["mse"].get_weights()[0]
    logs = numbers(distiller.train_on_batch(records, return_dict=True))
    assert np.isfinite(list(logs.values())).all()
    np.testing.assert_array_equal(distiller.betas["mse"].get_weights(), before)
    np.testing.assert_array_equal(distiller.projections["mse"].get_weights()[0], kernel)
    assert distiller.betas["answer"].get_weights()[0] != 0


@pytest.mark.pytorch
def test_top_tokens_are_those_the_teachers_text_looks_at():
    distiller = pair({"top": kd.FeatureMSEEnergy(top_tokens=1)}, tiny_gemma3(16))
    inputs, _, _ = distiller.preprocessor(vqa_records(3))
    logs = numbers(distiller.test_on_batch(vqa_records(3), return_dict=True))
    found = features64(distiller, inputs)
    kernel, bias = distiller.projections["top"].get_weights()
    gap = found["teacher"]["image"] - (found["student"]["image"] @ kernel + bias)
    values = np.mean(gap[:, 0] ** 2, axis=-1)
    x = {**inputs["student"], **inputs["teacher"]}
    softmax = distiller.teacher_parts[0].view.attention_layers()[0].softmax
    with recorded(softmax) as calls:
        distiller.teacher.backbone(x)
    attention = ops.convert_to_numpy(calls[0][0][2]).mean(axis=(1, 2))
    text = (x["padding_mask"] & ~x["vision_mask"].astype(bool)).astype("float64")
    looked = np.einsum("bts,bt->bs", attention, text)
    looked = np.take_along_axis(looked, x["vision_indices"].astype(int), axis=1)
    best = looked.argmax(axis=1)
    np.testing.assert_allclose(
        logs["top"], values[np.arange(3), best].mean(), rtol=1e-4
    )


@pytest.mark.pytorch
def test_three_losses_train_save_and_resume(tmp_path):
    def make():
        energies = [kd.CosineProbsEnergy(), kd.FeatureMSEEnergy()]
        return pair(energies, task_beta=kd.TaskBeta())

    records = vqa_records(6)
    first = make()
    before = first.teacher.get_weights()
    first.fit(records, batch_size=3, epochs=2, shuffle=False, verbose=0)
    first.save_weights(tmp_path / "three.weights.h5")
    first.save(tmp_path / "three.keras")
    for was, now in zip(before, first.teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)
    second = make()
    second.load_weights(tmp_path / "three.weights.h5")
    third = keras.saving.load_model(tmp_path / "three.keras")
    logs = [
        d.fit(records, batch_size=3, shuffle=False, verbose=0).history
        for d in (first, second, third)
    ]
    for name in ("loss", "task_beta", "cosine_probs_beta", "feature_mse_beta"):
        assert logs[0][name] == logs[1][name] == logs[2][name], name
        assert np.isfinite(logs[0][name]).all()
    assert logs[0]["feature_mse_beta"][0] != 1.0


@pytest.mark.pytorch
def test_pali_gemma_pair():
    # Image tokens stand before the text there, and there is one image a record.
    names = ("mse", "states", "attention", "image")
    distiller = pair(
        some_energies(*names), tiny_pali_gemma(16, image_size=32), tiny_pali_gemma()
    )
    logs = numbers(distiller.train_on_batch(vqa_records(3), return_dict=True))
    assert all(logs[name] > 0 for name in names)


@pytest.mark.pytorch
def test_two_images_a_record():
    records = {k: list(v) for k, v in vqa_records(3).items()}
    records["images"] = [[x[0], x[0][::-1]] for x in records["images"]]
    records["prompts"] = [p + "<image>" for p in records["prompts"]]
    models = [tiny_gemma3(w, grid=g, max_images=2) for w, g in ((16, 4), (8, 2))]
    distiller = pair(some_energies("mse", "top", "image"), *models)
    logs = numbers(distiller.test_on_batch(records, return_dict=True))
    inputs, _, _ = distiller.preprocessor(records)
    found = features64(distiller, inputs)
    assert found["student"]["image"].shape == (3, 2, 4, 8)
    kernel, bias = distiller.projections["mse"].get_weights()
    theirs = resized(ops.convert_to_tensor(found["teacher"]["image"], "float32"), 4)
    gap = ops.convert_to_numpy(theirs) - (found["student"]["image"] @ kernel + bias)
    np.testing.assert_allclose(logs["mse"], np.mean(gap**2), rtol=1e-4)


@pytest.mark.parametrize("features", ["image_features", "hidden_states"])
@pytest.mark.pytorch
def test_a_model_without_the_features_is_refused(features):
    student = tiny_gemma_text()
    energies = kd.FeatureCosineEnergy(features=features)
    if features == "hidden_states":
        student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    with pytest.raises(ValueError, match="needs a keras-hub CausalLM"):
        kd.BetaKDDistiller(tiny_gemma3(), student, energies=energies)


@pytest.mark.pytorch
def test_a_beta_for_each_token_is_refused_at_the_image():
    with pytest.raises(ValueError, match="no value for each answer token"):
        pair(kd.FeatureMSEEnergy(), beta=kd.TokenBeta())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kd.FeatureMSEEnergy(features="pixels"), "must be one of"),
        (lambda: kd.FeatureMSEEnergy(align="crop"), "must be one of"),
        (lambda: kd.FeatureMSEEnergy(top_tokens=0), "top_tokens"),
        (lambda: kd.FeatureMSEEnergy(top_tokens=2, align="pool"), "top_tokens"),
        (lambda: kd.FeatureRelationEnergy(features="hidden_states"), "all tokens"),
        (lambda: kd.ImageTokenEnergy(kd.DKDEnergy()), "no labels"),
        (lambda: kd.ImageTokenEnergy(kd.FeatureMSEEnergy()), "between logits"),
        (lambda: kd.FeatureMSEEnergy()(T, S[..., :2]), "widths"),
        (lambda: kd.FeatureMSEEnergy()(T, S[:, :2]), "same positions"),
        (lambda: kd.FeatureMSEEnergy(widths=(2, 3)).set_widths(2, 4), "another energy"),
    ],
)
@pytest.mark.pytorch
def test_invalid_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "beta", [lambda: kd.InstanceBeta(hidden_units=4), kd.AnalyticBeta], ids=["i", "a"]
)
@pytest.mark.pytorch
def test_other_betas_weigh_features(beta):
    names = ("mse", "states", "image")
    distiller = pair(some_energies(*names), beta=beta())
    logs = [
        numbers(distiller.train_on_batch(vqa_records(3), return_dict=True))
        for _ in range(2)
    ]
    assert np.isfinite(list(logs[1].values())).all()
    for name in names:
        assert logs[0][f"{name}_beta"] == pytest.approx(1.0)
        assert abs(logs[1][f"{name}_beta"] - 1.0) > 1e-3, name
