"""The distiller on plain models: the total, what trains, masks, metrics."""

import keras
import numpy as np
import pytest
from keras import ops
from marks import kept
from plain_models import (
    CLASSES,
    ConstantEnergy,
    as_array,
    cross_entropy64,
    example_mean64,
    forward_kl64,
    linear_model,
    no_task_loss,
    token_batch,
)

from keras_betakd import (
    AnalyticBeta,
    BetaKDDistiller,
    CosineLogitsEnergy,
    CosineProbsEnergy,
    FixedBeta,
    ForwardKLEnergy,
    InstanceBeta,
    JensenShannonEnergy,
    MSELogitsEnergy,
    MSEProbsEnergy,
    ReverseKLEnergy,
    SkewForwardKLEnergy,
    SkewReverseKLEnergy,
    TaskBeta,
    TokenBeta,
    TotalVariationEnergy,
)

pytestmark = pytest.mark.backends

ENERGIES = [
    CosineLogitsEnergy,
    CosineProbsEnergy,
    ForwardKLEnergy,
    JensenShannonEnergy,
    MSELogitsEnergy,
    MSEProbsEnergy,
    ReverseKLEnergy,
    SkewForwardKLEnergy,
    SkewReverseKLEnergy,
    TotalVariationEnergy,
]


def distiller_of(energies=None, beta=None, optimizer=None, **kwargs):
    compile_names = ("loss", "jit_compile", "run_eagerly", "weighted_metrics")
    compile_args = {k: kwargs.pop(k) for k in compile_names if k in kwargs}
    distiller = BetaKDDistiller(
        kwargs.pop("teacher", None) or linear_model(1),
        kwargs.pop("student", None) or linear_model(2),
        energies=energies or ForwardKLEnergy(),
        beta=beta or TaskBeta(),
        **kwargs,
    )
    distiller.compile(optimizer=optimizer or keras.optimizers.SGD(0.0), **compile_args)
    return distiller


@pytest.mark.traced
@pytest.mark.parametrize("jit_compile", kept([False, True], True))
@pytest.mark.parametrize(
    "path",
    kept(["fit", "evaluate", "train_on_batch", "test_on_batch"], "fit", "evaluate"),
)
def test_penalty_is_counted_once_on_every_path(path, jit_compile):
    """JAX drops a loss that is added inside `compute_loss` (giving 0.2); elsewhere it
    could count twice. With beta 2, E 0.1, d 1 the total is -0.146574 everywhere."""
    if jit_compile and keras.config.backend() == "torch":
        jit_compile = "auto"  # torch.compile needs a C++ toolchain; auto is eager
    distiller = distiller_of(
        ConstantEnergy(0.1),
        TaskBeta(initial_value=2.0),
        loss=no_task_loss,
        jit_compile=jit_compile,
    )
    x, y, weight = token_batch()
    if path == "fit":
        history = distiller.fit(x, y, batch_size=4, sample_weight=weight, verbose=0)
        total = history.history["loss"][0]
    elif path == "evaluate":
        total = distiller.evaluate(x, y, sample_weight=weight, verbose=0)[0]
    else:
        total = getattr(distiller, path)(x, y, sample_weight=weight)[0]
    assert float(total) == pytest.approx(-0.146574, abs=1e-6)


@pytest.mark.parametrize("reduction", ["example", "token"])
def test_total_against_float64(reduction):
    x, y, weight = token_batch()
    teacher, student = linear_model(1), linear_model(2)
    distiller = distiller_of(
        {"kl": ForwardKLEnergy(), "const": ConstantEnergy(0.3)},
        {"kl": FixedBeta(2.0), "const": FixedBeta(0.5, dim=4.0)},
        teacher=teacher,
        student=student,
        reduction=reduction,
        weighted_metrics=[],
    )
    values = distiller.test_on_batch(x, y, sample_weight=weight, return_dict=True)

    def mean(v):
        if reduction == "example":
            return example_mean64(v, weight)
        return float((v * weight).sum() / weight.sum())

    t, s = as_array(teacher(x)), as_array(student(x))
    task, kl = mean(cross_entropy64(y, s)), mean(forward_kl64(t, s))
    total = task + 2.0 * kl - 0.5 * np.log(2.0) + 0.5 * 0.3 - 2.0 * np.log(0.5)
    expected = {"task_loss": task, "kl": kl, "const": 0.3, "loss": total}
    for name, value in {**expected, "kl_beta": 2.0, "const_beta": 0.5}.items():
        assert float(values[name]) == pytest.approx(value, rel=2e-6), name


def test_task_loss_gets_a_beta_of_its_own():
    x, y, weight = token_batch()
    distiller = distiller_of(
        ConstantEnergy(0.1), FixedBeta(1.0), task_beta=FixedBeta(3.0, dim=2.0)
    )
    values = distiller.test_on_batch(x, y, sample_weight=weight, return_dict=True)
    total = 3.0 * float(values["task_loss"]) - np.log(3.0) + 0.1
    assert float(values["loss"]) == pytest.approx(total, rel=1e-5)
    assert float(values["task_beta"]) == pytest.approx(3.0)


def test_one_step_moves_log_beta_by_its_speed():
    """Betas that no optimizer gets never change."""
    distiller = distiller_of(
        ConstantEnergy(0.1), optimizer=keras.optimizers.SGD(0.1), loss=no_task_loss
    )
    beta = distiller.betas["constant"]
    assert any(v is beta.raw for v in distiller.trainable_variables)
    distiller.train_on_batch(*token_batch())
    assert float(as_array(beta.log_beta(None))) == pytest.approx(0.1, abs=1e-5)


@pytest.mark.traced
@pytest.mark.parametrize(
    "energy, settled", kept([(0.1, 5.0), (0.5, 1.0), (0.0, 100.0)], (0.1, 5.0)), ids=str
)
def test_beta_settles_at_d_over_2l_or_at_its_bound(energy, settled):
    """At an energy of 0 the objective has no lower bound: only the bound stops beta."""
    distiller = distiller_of(
        ConstantEnergy(energy),
        optimizer=keras.optimizers.Adam(0.1),
        loss=no_task_loss,
        weighted_metrics=[],
    )
    data = token_batch()
    x, y, weight = (np.tile(v, (100, *[1] * (v.ndim - 1))) for v in data)
    history = distiller.fit(
        x, y, batch_size=4, epochs=2, sample_weight=weight, shuffle=False, verbose=0
    )
    beta = float(ops.exp(distiller.betas["constant"].log_beta(None)))
    assert np.isfinite(history.history["loss"]).all()
    if energy:
        assert beta == pytest.approx(settled, rel=0.02)
        total = float(distiller.test_on_batch(*data)[0])
        assert total == pytest.approx(
            energy * settled - 0.5 * np.log(settled), abs=1e-3
        )
    else:
        assert beta == pytest.approx(settled, rel=1e-5)


def test_weight_decay_leaves_beta_alone():
    """Weight decay would pull log beta towards its initial value."""
    distiller = distiller_of(
        ConstantEnergy(0.5), optimizer=keras.optimizers.AdamW(0.01, weight_decay=0.5)
    )
    raw = distiller.betas["constant"].raw
    raw.assign(0.005)
    distiller.betas["constant"].unbounded = lambda raw: 0.0 * raw  # no gradient
    before = distiller.student.get_weights()[0]
    for _ in range(5):
        distiller.train_on_batch(*token_batch())
    assert float(as_array(raw.value)) == np.float32(0.005)
    assert abs(distiller.student.get_weights()[0]).sum() < abs(before).sum()


def test_weight_decay_of_an_optimizer_named_by_string():
    found = {}
    for optimizer in ("adam", "adamw"):
        distiller = BetaKDDistiller(linear_model(1), linear_model(2), ForwardKLEnergy())
        distiller.compile(optimizer=optimizer)
        raw = distiller.betas["forward_kl"].raw
        raw.assign(0.005)
        distiller.train_on_batch(*token_batch())
        found[optimizer] = float(as_array(raw.value))
    assert found["adam"] == found["adamw"] != 0.005


@pytest.mark.parametrize(
    "names, taken",
    [(["task"], "task"), (["loss"], "loss"), (["a", "a_beta"], "a_beta")],
)
def test_a_name_that_something_else_is_reported_under_is_refused(names, taken):
    """An energy named "task" once took the cross-entropy's weight: a `KeyError`."""
    energies = {name: ConstantEnergy(0.1) for name in names}
    with pytest.raises(ValueError, match=rf"taken: \['{taken}'"):
        distiller_of(energies)


def test_built_optimizer_with_weight_decay_is_refused():
    optimizer = keras.optimizers.AdamW(0.01)
    optimizer.build(linear_model(3).trainable_variables)
    with pytest.raises(ValueError, match="Pass a new optimizer"):
        distiller_of(optimizer=optimizer)


def test_only_student_and_beta_have_optimizer_slots():
    distiller = distiller_of(optimizer=keras.optimizers.Adam(0.01))
    trained = distiller.trainable_variables
    assert len(trained) == len(distiller.student.variables) + 1
    slots = distiller.optimizer.inner_optimizer.variables
    assert len(slots) == 2 + 2 * len(trained)


@pytest.mark.traced
def test_teacher_is_bit_identical_after_fit_and_stays_frozen():
    inputs = keras.Input((3, 4))
    x = keras.layers.Dropout(0.5)(keras.layers.BatchNormalization()(inputs))
    teacher = keras.Model(inputs, keras.layers.Dense(CLASSES)(x))
    before = [w.copy() for w in teacher.get_weights()]
    distiller = distiller_of(teacher=teacher, optimizer=keras.optimizers.SGD(0.1))
    distiller.trainable = True
    x, y, weight = token_batch()
    distiller.fit(x, y, sample_weight=weight, epochs=2, verbose=0)
    for was, now in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)
    assert teacher.trainable_variables == []


def test_evaluation_runs_without_dropout():
    """Another library ran its student in training mode even under `evaluate`."""
    distiller = distiller_of(student=linear_model(2, dropout=0.5))
    x, y, weight = token_batch()
    first, second = (distiller.test_on_batch(x, y, weight) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("reduction", ["example", "token"])
def test_example_without_supervision_equals_its_absence(reduction):
    """Its token count of 0 once made the mean NaN, and with it the whole training."""
    x, y, weight = token_batch()
    distiller = distiller_of([energy() for energy in ENERGIES], reduction=reduction)
    whole = distiller.test_on_batch(x, y, weight, return_dict=True)
    rows = [0, 1, 3]
    part = distiller.test_on_batch(x[rows], y[rows], weight[rows], return_dict=True)
    for name in part:
        assert float(whole[name]) == pytest.approx(float(part[name]), rel=1e-5), name


@pytest.mark.parametrize(
    "beta",
    kept([TaskBeta, AnalyticBeta, InstanceBeta, TokenBeta], TokenBeta),
    ids=lambda c: c.__name__,
)
def test_batch_without_supervision_is_zero_and_moves_nothing(beta):
    kwargs = {"features": "uncertainty"} if beta in (InstanceBeta, TokenBeta) else {}
    distiller = distiller_of(
        [energy() for energy in ENERGIES],
        beta(**kwargs),
        optimizer=keras.optimizers.SGD(1.0),
    )
    x, y, weight = token_batch()
    variables = list(distiller.student.variables)
    for layer in distiller.betas.values():
        variables += layer.variables
    before = [as_array(v.value).copy() for v in variables]
    values = distiller.train_on_batch(x, y, 0 * weight, return_dict=True)
    # A beta of 0 would be none that the layer can have: its own value is reported.
    expected = {name: float(name.endswith("_beta")) for name in values}
    assert {name: float(v) for name, v in values.items()} == expected
    for was, variable in zip(before, variables, strict=True):
        np.testing.assert_array_equal(was, as_array(variable.value))


@pytest.mark.parametrize("beta", [TaskBeta, TokenBeta], ids=lambda c: c.__name__)
@pytest.mark.parametrize("padding", kept([0, 5, 50], 50))
def test_padding_changes_nothing(padding, beta):
    """Padded positions have random logits and labels of -100; one published method only
    looked better than another because padding was counted."""
    x, y, weight = token_batch()
    rng = np.random.default_rng(7)
    more = rng.normal(scale=100.0, size=(4, padding, 4)).astype("float32")
    kwargs = {} if beta is TaskBeta else {"features": "uncertainty"}
    results = []
    for x_, y_, weight_ in (
        (x, y, weight),
        (
            np.concatenate([x, more], 1),
            np.pad(y, ((0, 0), (0, padding)), constant_values=-100),
            np.pad(weight, ((0, 0), (0, padding))),
        ),
    ):
        size = x_.shape[1]
        keras.utils.set_random_seed(1)
        distiller = distiller_of(
            beta=beta(**kwargs),
            teacher=linear_model(1, positions=size),
            student=linear_model(2, positions=size),
            optimizer=keras.optimizers.SGD(0.1),
        )
        distiller.train_on_batch(x_, y_, weight_)
        values = distiller.test_on_batch(x_, y_, weight_, return_dict=True)
        results.append((values, distiller.student.get_weights()))
    (first, first_weights), (second, second_weights) = results
    assert float(first["loss"]) == pytest.approx(float(second["loss"]), rel=1e-5)
    for a, b in zip(first_weights, second_weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_mask_attached_by_keras_is_honoured():
    inputs = keras.Input((3, 4))
    student = keras.Model(
        inputs, keras.layers.Dense(CLASSES)(keras.layers.Masking()(inputs))
    )
    student.set_weights(linear_model(2).get_weights())
    x, y, _ = token_batch()
    x[:, 2] = 0.0
    with_mask = distiller_of(student=student).test_on_batch(x, y)
    weight = np.array([[1, 1, 0]] * 4, "float32")
    by_weight = distiller_of().test_on_batch(x, y, weight)
    np.testing.assert_allclose(with_mask[0], by_weight[0], rtol=1e-5)


@pytest.mark.traced
def test_metrics_are_per_batch_per_epoch_and_per_split():
    """`train_on_batch` once reported the mean of all calls so far; trackers made in
    `build` broke JAX."""
    distiller = distiller_of(ConstantEnergy(0.0), FixedBeta(1.0), weighted_metrics=[])
    x, y, weight = token_batch()
    first = distiller.train_on_batch(x, y, weight, return_dict=True)
    other = distiller.train_on_batch(3 * x, y, weight, return_dict=True)
    student = as_array(distiller.student(3 * x))
    expected = example_mean64(cross_entropy64(y, student), weight)
    assert float(other["task_loss"]) == pytest.approx(expected, rel=1e-5)
    history = distiller.fit(
        x,
        y,
        sample_weight=weight,
        epochs=2,
        batch_size=4,
        validation_data=(3 * x, y, weight),
        verbose=0,
    ).history
    assert history["task_loss"] == pytest.approx([float(first["task_loss"])] * 2)
    assert history["val_task_loss"] == pytest.approx([expected] * 2, rel=1e-5)


def test_names_of_metrics_are_unique():
    distiller = distiller_of([ForwardKLEnergy(), ForwardKLEnergy(temperature=2.0)])
    values = distiller.test_on_batch(*token_batch(), return_dict=True)
    assert {"forward_kl", "forward_kl_1", "forward_kl_beta", "forward_kl_1_beta"} <= (
        set(values)
    )


def test_epoch_mean_weighs_batches_by_their_examples():
    x, y, weight = token_batch(batch=5)
    distiller = distiller_of(weighted_metrics=[])
    values = distiller.evaluate(
        x, y, batch_size=2, sample_weight=weight, return_dict=True, verbose=0
    )
    whole = distiller.test_on_batch(x, y, weight, return_dict=True)
    assert values["task_loss"] == pytest.approx(float(whole["task_loss"]), rel=1e-5)


def test_classification_without_a_position_axis():
    def model(seed):
        inputs = keras.Input((4,))
        model = keras.Model(inputs, keras.layers.Dense(CLASSES)(inputs))
        model.set_weights(linear_model(seed).get_weights())
        return model

    x, y, _ = token_batch(positions=1)
    distiller = distiller_of(teacher=model(1), student=model(2))
    flat = distiller.test_on_batch(x[:, 0], y[:, 0], np.arange(1.0, 5.0))
    rows = distiller_of(
        teacher=linear_model(1, positions=1), student=linear_model(2, positions=1)
    ).test_on_batch(x, y, np.arange(1.0, 5.0)[:, None])
    np.testing.assert_allclose(flat, rows, rtol=1e-6)


def test_models_may_see_different_inputs():
    x, y, weight = token_batch()
    distiller = distiller_of(teacher=linear_model(1, width=6))
    wide = np.concatenate([x, x[..., :2]], axis=-1)
    inputs = {"student": x, "teacher": wide}
    assert np.isfinite(distiller.train_on_batch(inputs, y, weight)).all()
    assert distiller.predict(inputs, verbose=0).shape == (4, 3, CLASSES)


def test_swapping_teacher_and_student_changes_the_energy():
    batch = token_batch()
    one = distiller_of().test_on_batch(*batch, return_dict=True)
    other = distiller_of(teacher=linear_model(2), student=linear_model(1))
    other = other.test_on_batch(*batch, return_dict=True)
    assert abs(float(one["forward_kl"]) - float(other["forward_kl"])) > 0.01


def test_student_equal_to_teacher_has_no_energy():
    """A shortcut once added half the hard-label loss without notice."""
    model = linear_model(1)
    distiller = distiller_of(teacher=model, student=linear_model(1))
    values = distiller.test_on_batch(*token_batch(), return_dict=True)
    assert float(values["forward_kl"]) == 0.0


@pytest.mark.float16
@pytest.mark.traced
def test_float16_student_gets_loss_scaling_and_float32_betas():
    """Only the student is half precision: Keras checks the outer model alone."""
    keras.config.set_dtype_policy("mixed_float16")
    student = linear_model(2)
    keras.config.set_dtype_policy("float32")
    distiller = distiller_of(student=student, optimizer=keras.optimizers.Adam(0.01))
    scaled = distiller.optimizer.inner_optimizer
    assert isinstance(scaled, keras.optimizers.LossScaleOptimizer)
    before = student.get_weights()[0].copy()
    values = distiller.train_on_batch(*token_batch(), return_dict=True)
    full = distiller_of().test_on_batch(*token_batch(), return_dict=True)
    assert float(values["loss"]) == pytest.approx(float(full["loss"]), rel=5e-3)
    assert distiller.betas["forward_kl"].raw.dtype == "float32"
    assert (student.get_weights()[0] != before).any()


@pytest.mark.traced
@pytest.mark.parametrize(("max_value", "settles"), [(1e12, False), (10.0, True)])
@pytest.mark.pytorch
def test_a_bound_on_beta_keeps_three_losses_in_place(max_value, settles):
    """An energy that can be 0 makes beta grow until a step overshoots, once rate * beta
    * curvature passes 2: without a bound the energy came back to thousands of times its
    least value, and took the cross-entropy along."""

    def beta():
        return TaskBeta(min_value=0.01, max_value=max_value, speed=0.05)

    distiller = BetaKDDistiller(
        linear_model(0),
        linear_model(1),
        energies=[MSELogitsEnergy(standardize=False), CosineProbsEnergy()],
        beta=[beta(), beta()],
        task_beta=beta(),
    )
    distiller.compile(optimizer=keras.optimizers.SGD(0.1, momentum=0.9))
    batch = token_batch()
    logs = [distiller.train_on_batch(*batch, return_dict=True) for _ in range(300)]
    energy = np.array([float(step["mse_logits"]) for step in logs])
    relapse = np.max(energy[1:] / np.minimum.accumulate(energy)[:-1])
    assert (relapse < 10) == settles
    task_loss = [float(step["task_loss"]) for step in logs[100:]]
    assert (max(task_loss) < 3) == settles
