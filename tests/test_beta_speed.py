"""Betas move at their own speed, whatever the student's optimizer and learning rate.

They were variables of the student's optimizer, with a multiple of its learning rate: a
`TaskBeta` jumped between its bounds with Adam at 1e-2, sat at its lower bound with SGD
and momentum, where the teacher is off, and hardly moved with Adafactor.
"""

import math

import keras
import numpy as np
import pytest
from keras import ops
from plain_models import ConstantEnergy, linear_model, token_batch

from keras_betakd import BetaKDDistiller, InstanceBeta, TaskBeta
from keras_betakd.distillation.beta_optimizer import BetaOptimizer
from keras_betakd.distillation.finite_steps_optimizer import FiniteStepsOptimizer

X, Y, WEIGHT = token_batch(batch=8)
OPTIMIZERS = {
    "adam, fine-tuning": lambda: keras.optimizers.Adam(2e-5),
    "adam, from scratch": lambda: keras.optimizers.Adam(1e-2),
    "sgd": lambda: keras.optimizers.SGD(0.1),
    "sgd, momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "adafactor": lambda: keras.optimizers.Adafactor(1e-3),
    "lion": lambda: keras.optimizers.Lion(1e-4),
    "adamw, clipped": lambda: keras.optimizers.AdamW(1e-3, global_clipnorm=0.01),
    "muon": lambda: keras.optimizers.Muon(1e-3),
}


# The rule is one for all optimizers: on the other backends, one that differs.
EVERYWHERE = ("adamw, clipped",)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.backends if n in EVERYWHERE else ())
        for n in OPTIMIZERS
    ],
)
@pytest.mark.one_of_two("jax")
def test_a_task_beta_settles_calmly_with_every_optimizer(name):
    beta = TaskBeta(speed=0.05)
    model = BetaKDDistiller(linear_model(1), linear_model(2), ConstantEnergy(0.1), beta)
    model.compile(optimizer=OPTIMIZERS[name]())
    values = [0.0]
    for _ in range(80):
        model.train_on_batch(X, Y, WEIGHT)
        values.append(float(ops.convert_to_numpy(beta.log_beta(None))))
    changes = np.diff(values)
    assert np.abs(changes).max() <= 0.0501
    assert np.all(changes[:28] > 0.03)  # of the 32 to log 5, d / (2 * 0.1)
    assert values[-1] == pytest.approx(math.log(5.0), abs=0.05)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_students_optimizer_has_no_part_in_it(name):
    """With betas or without, the student moves alike; the betas move alike with all."""
    beta = InstanceBeta(hidden_units=4)
    wrapped = FiniteStepsOptimizer(OPTIMIZERS[name](), [beta])
    plain = OPTIMIZERS[name]()
    beta.build((None, None), (None, 3))
    keras.utils.set_random_seed(1)
    start = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    ours, alone = keras.Variable(start), keras.Variable(start)
    own = BetaOptimizer([beta])
    copies = [keras.Variable(v) for v in beta.trainable_variables]
    own._learning_rates = lambda: {id(v): beta.learning_rate for v in copies}
    for seed in range(3):
        rng = np.random.default_rng(seed)
        gradients = [ops.array(rng.normal(size=v.shape), "float32") for v in copies]
        of_student = ops.array(rng.normal(size=(4, 3)), "float32")
        wrapped.apply([of_student, *gradients], [ours, *beta.trainable_variables])
        plain.apply([of_student], [alone])
        own.apply(gradients, copies)
    np.testing.assert_allclose(ours, alone, rtol=1e-6)
    for found, expected in zip(beta.trainable_variables, copies, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert not np.allclose(alone, start)


@pytest.mark.backends
def test_averages_of_the_students_optimizer_do_not_move_beta():
    found = {}
    for average in (False, True):
        options = {
            "use_ema": average,
            "ema_overwrite_frequency": 2 if average else None,
        }
        beta = TaskBeta(speed=0.05)
        model = BetaKDDistiller(
            linear_model(1), linear_model(2), ConstantEnergy(0.1), beta
        )
        model.compile(optimizer=keras.optimizers.SGD(0.1, **options))
        for _ in range(4):
            model.train_on_batch(X, Y, WEIGHT)
        found[average] = float(ops.convert_to_numpy(beta.log_beta(None)))
    assert found[True] == pytest.approx(found[False], abs=1e-6)
    assert found[True] == pytest.approx(0.2, abs=1e-3)


def test_beta_rises_soon_after_energies_that_were_large():
    """With Adam's usual memory of a thousand steps it stood still for as long."""
    beta = TaskBeta()
    beta.build((1, 1))
    optimizer = BetaOptimizer([beta])
    optimizer.build(beta.trainable_variables)
    energies = np.concatenate([np.geomspace(10.0, 0.05, 200), np.full(700, 0.05)])
    for energy in energies:
        slope = math.exp(float(beta.log_beta(None))) * energy - 0.5
        optimizer.apply([ops.convert_to_tensor(slope, "float32")])
    assert math.exp(float(beta.log_beta(None))) == pytest.approx(10.0, rel=0.05)


@pytest.mark.parametrize("width", [3, 16, 512])
def test_a_networks_log_beta_begins_at_about_its_speed(width):
    keras.utils.set_random_seed(0)
    features = np.random.default_rng(0).normal(size=(8, width)).astype("float32")
    beta = InstanceBeta(features="hidden_states", shrinkage=4.0, speed=0.02)
    beta.build((None, None), (None, width))
    optimizer = FiniteStepsOptimizer(keras.optimizers.SGD(1.0), [beta])
    before = ops.convert_to_numpy(beta.log_beta(features))
    optimizer.apply(_gradients(beta, features), beta.trainable_variables)
    moved = ops.convert_to_numpy(beta.log_beta(features)) - before
    assert moved.mean() == pytest.approx(0.02, rel=0.5)


def _gradients(beta, features):
    """Of -log beta, at the start, where the output's weights are zeros."""
    hidden = beta.hidden(beta.normalization(features))
    of_kernel = -ops.sum(hidden, axis=0)[:, None]
    known = {id(beta.raw.kernel): of_kernel, id(beta.raw.bias): ops.full((1,), -8.0)}
    zeros = [ops.zeros(v.shape) for v in beta.trainable_variables]
    pairs = zip(beta.trainable_variables, zeros, strict=True)
    return [known.get(id(v), zero) for v, zero in pairs]
