"""What callbacks monitor: every metric has a direction, and one moves with no beta."""

import keras
import numpy as np
import pytest
from plain_models import (
    ConstantEnergy,
    cross_entropy64,
    example_mean64,
    forward_kl64,
    linear_model,
    no_task_loss,
    token_batch,
)
from strict_warnings import no_user_warnings

from keras_betakd import (
    BetaKDDistiller,
    FixedBeta,
    ForwardKLEnergy,
    InstanceBeta,
    TAIDEnergy,
    TaskBeta,
)


def distiller(energy=None, beta=None, optimizer=None, **options):
    model = BetaKDDistiller(
        linear_model(1), linear_model(2), energy or {"kl": ForwardKLEnergy()}, beta,
        **options,
    )  # fmt: skip
    model.compile(optimizer=optimizer or keras.optimizers.SGD(0.1))
    return model


def fit(model, *callbacks, epochs=3):
    x, y, weight = token_batch()
    return model.fit(
        x,
        y,
        sample_weight=weight,
        batch_size=4,
        epochs=epochs,
        verbose=0,
        validation_data=(x, y, weight),
        callbacks=list(callbacks),
    ).history


EarlyStopping = keras.callbacks.EarlyStopping
MONITORS = {
    "val_accuracy": "max",
    "accuracy": "max",
    "val_task_loss": "min",
    "val_objective": "min",
    "objective": "min",
    "val_kl": "min",
    "kl_beta": "max",
    "val_task_beta": "max",
}


@pytest.mark.parametrize("monitor, mode", MONITORS.items())
def test_every_metric_has_a_direction(monitor, mode, tmp_path):
    """Keras knew none and ended the run after the first epoch."""
    callbacks = [
        EarlyStopping(monitor=monitor, patience=9),
        keras.callbacks.ReduceLROnPlateau(monitor=monitor),
        keras.callbacks.ModelCheckpoint(
            tmp_path / "x.weights.h5", monitor, save_best_only=True,
            save_weights_only=True,
        ),
    ]  # fmt: skip
    with no_user_warnings():
        history = fit(distiller(task_beta=True), *callbacks)
    best = {"min": min, "max": max}[mode](history[monitor])
    assert [callback.best for callback in callbacks] == [pytest.approx(best)] * 3
    assert (tmp_path / "x.weights.h5").exists()


def test_a_mode_that_the_user_gives_stays():
    callback = EarlyStopping(monitor="val_kl", mode="max", patience=9)
    history = fit(distiller(), callback)
    assert callback.best == pytest.approx(max(history["val_kl"]))


def test_a_metric_without_direction_is_refused_before_the_first_epoch():
    model = distiller(TAIDEnergy(3, name="taid"))
    (shown,) = (m.name for m in model.schedule_trackers.values())
    began = keras.callbacks.LambdaCallback(on_epoch_begin=lambda *_: pytest.fail())
    with pytest.raises(ValueError, match=f"monitors 'val_{shown}', of which neither"):
        fit(model, EarlyStopping(monitor=f"val_{shown}"), began)


def test_a_loss_that_moves_with_beta_is_warned_of():
    """It falls by a learned beta alone, so that a run looks like a success."""
    for monitor, instead in (("val_loss", "val_objective"), ("loss", "objective")):
        with pytest.warns(UserWarning, match=f"monitors '{monitor}'.*'{instead}'"):
            fit(distiller(), EarlyStopping(monitor=monitor))
    with no_user_warnings():
        fit(distiller(beta=FixedBeta()), EarlyStopping())
        every_epoch = keras.callbacks.ModelCheckpoint("{epoch}.keras", save_freq=1000)
        fit(distiller(), every_epoch)


@pytest.mark.backends
@pytest.mark.traced
@pytest.mark.parametrize(
    "beta", [TaskBeta, lambda: InstanceBeta(features="uncertainty")]
)
def test_the_objective_stands_still_where_the_student_does(beta):
    """The loss falls there, by the beta alone."""
    model = distiller(ConstantEnergy(0.1), beta())
    model.compile(optimizer=keras.optimizers.Adam(0.05), loss=no_task_loss)
    history = fit(model, epochs=4)
    assert abs(history["val_loss"][-1] - history["val_loss"][0]) > 1e-2
    for name in ("val_objective", "objective", "val_task_loss"):
        assert history[name] == pytest.approx([history[name][0]] * 4, rel=1e-6)


def expected_objective(term):
    x, y, weight = token_batch()
    teacher, student = (
        x @ model.get_weights()[0] + model.get_weights()[1]
        for model in (linear_model(1), linear_model(2))
    )
    task = example_mean64(cross_entropy64(y, student), weight)
    return term(example_mean64(forward_kl64(teacher, student), weight), task)


@pytest.mark.backends
@pytest.mark.parametrize(
    "options, term",
    [
        (
            {"beta": TaskBeta(dim=3.0, max_value=1e6)},
            lambda e, task: task + 1.5 * (1 + np.log(2 * e / 3)),
        ),
        ({"beta": FixedBeta(2.0)}, lambda e, task: task + 2 * e - 0.5 * np.log(2)),
        (
            # The best beta is beyond the bound.
            {"beta": TaskBeta(initial_value=0.02, max_value=0.05)},
            lambda e, task: task + 0.05 * e - 0.5 * np.log(0.05),
        ),
        (
            {"beta": FixedBeta(), "task_beta": TaskBeta(initial_value=0.5)},
            lambda e, task: 0.5 * (1 + np.log(2 * task)) + e,
        ),
    ],
    ids=["dim", "fixed", "bound", "task_beta"],
)
def test_the_objective_is_the_loss_at_the_best_betas(options, term):
    model = distiller(**options)
    x, y, weight = token_batch()
    values = model.test_on_batch(x, y, weight, return_dict=True)
    assert float(values["objective"]) == pytest.approx(
        expected_objective(term), rel=1e-5
    )
    if "task_beta" not in options and isinstance(options["beta"], FixedBeta):
        assert float(values["objective"]) == pytest.approx(float(values["loss"]))


def test_the_objective_is_of_the_means_of_an_epoch():
    """The mean of the batches' logarithms would be another number."""
    x, y, weight = token_batch()
    values = distiller().evaluate(
        x, y, sample_weight=weight, batch_size=1, return_dict=True, verbose=0
    )
    expected = expected_objective(lambda e, task: task + 0.5 * (1 + np.log(2 * e)))
    assert values["objective"] == pytest.approx(expected, rel=1e-5)


def test_the_objective_is_finite_at_agreement():
    model = distiller(ConstantEnergy(0.0), TaskBeta(max_value=50.0))
    x, y, weight = token_batch()
    values = model.test_on_batch(x, y, weight, return_dict=True)
    expected = float(values["task_loss"]) - 0.5 * np.log(50)
    assert float(values["objective"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.backends
def test_a_beta_of_no_row_is_its_own_value():
    """It was reported as 0, which no beta can be."""
    x, y, weight = token_batch()
    for beta in (FixedBeta(3.0), InstanceBeta(features="uncertainty", initial_value=3)):
        model = distiller(beta=beta)
        values = model.test_on_batch(x, y, 0 * weight, return_dict=True)
        assert float(values["kl_beta"]) == pytest.approx(3.0)
    model = distiller(beta=InstanceBeta(features="uncertainty"))
    model.betas["kl"].raw.set_weights(
        [np.random.default_rng(0).normal(size=w.shape) for w in
         model.betas["kl"].raw.get_weights()]
    )  # fmt: skip
    options = {"batch_size": 4, "return_dict": True, "verbose": 0}
    alone = model.evaluate(x, y, sample_weight=weight, **options)["kl_beta"]
    twice = [np.concatenate([a, b]) for a, b in ((x, x[::-1]), (y, y))]
    weights = np.concatenate([weight, 0 * weight])
    more = model.evaluate(*twice, sample_weight=weights, **options)
    assert more["kl_beta"] == pytest.approx(alone, rel=1e-6)
