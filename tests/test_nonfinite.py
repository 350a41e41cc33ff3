"""A student, a loss or a gradient that is not finite: the step changes nothing."""

import h5py
import keras
import numpy as np
import pytest
from keras import ops
from test_nonfinite_teacher import lookup

from keras_betakd import (
    AnalyticBeta,
    BetaKDDistiller,
    FiniteStepsOptimizer,
    ForwardKLEnergy,
    NonFiniteError,
    ReverseKLEnergy,
    TaskBeta,
    TokenBeta,
)
from keras_betakd.distillation.finite_steps_optimizer import all_finite
from keras_betakd.distillation.nonfinite import (
    NonFiniteCounts,
    finite_rows,
    unweighted_nonfinite,
)
from keras_betakd.models.outputs import ModelOutputs
from keras_betakd.preprocessing.records import encoded_ids

pytestmark = pytest.mark.backends

BAD = 3  # the id behind which the student's logits are not finite
NAMES = ["zero", "one", "zwei", "drei", "four", "five"]
IDS = np.array([[0, 1, 2], [1, 2, 0], [2, BAD, 1], [0, 0, 1], [1, 1, 2], [0, 2, 2]])
LABELS = np.array([[1, 2, 3], [0, 1, 2], [3, 3, 0], [1, 1, 2], [4, 0, 1], [2, 2, 0]])


def distiller(value, energy=ForwardKLEnergy, beta=TaskBeta, **options):
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(1)
    teacher, student = rng.normal(size=(4, 5)), rng.normal(size=(4, 5))
    student[BAD, 0] = value
    model = BetaKDDistiller(lookup(teacher), lookup(student), energy(), beta())
    optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.1)
    model.compile(optimizer=optimizer, **options)
    return model


def batch(rows):
    x = {"student": IDS[rows], "teacher": IDS[rows]}
    return {**x, "ids": encoded_ids([NAMES[i] for i in rows])}, LABELS[rows]


def fit(model, rows, **options):
    options = {"shuffle": False, "verbose": 0, **options}
    return model.fit(*batch(rows), batch_size=2, **options).history


def state(model):
    variables = model.trainable_variables + model.optimizer.inner_optimizer.variables
    variables += [v for b in model.betas.values() for v in b.variables]
    return [ops.convert_to_numpy(v) for v in variables]


@pytest.mark.traced
@pytest.mark.parametrize(
    "value, energy, beta",
    [
        (np.nan, ForwardKLEnergy, TaskBeta),
        pytest.param(np.inf, ReverseKLEnergy, AnalyticBeta, marks=pytest.mark.pytorch),
        pytest.param(
            -np.inf,
            ForwardKLEnergy,
            lambda: TokenBeta(features="uncertainty"),
            marks=pytest.mark.pytorch,
        ),
    ],
)
def test_a_bad_step_is_as_if_it_had_not_been(value, energy, beta):
    """NaN once reached betas, moments and means, and an infinite KL the betas."""
    nonfinite, finite = (distiller(x, energy, beta) for x in (value, 0.0))
    with pytest.warns(RuntimeWarning, match=r"of 1 samples .* of samples 'zwei'\. 1 b"):
        found = fit(nonfinite, range(6))
    expected = fit(finite, [0, 1, 4, 5])
    assert found.keys() == expected.keys()
    for name in found:
        assert found[name] == pytest.approx(expected[name], rel=1e-5), name
    # Except for the non-finite value itself, which weight decay may change.
    nonfinite.student.weights[0].assign(finite.student.weights[0])
    for ours, theirs in zip(state(nonfinite), state(finite), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.traced
def test_raise_names_the_sample_and_leaves_everything_as_it_was():
    model = distiller(np.nan, on_nonfinite="raise")
    fit(model, [0, 1])
    before = state(model)
    with pytest.raises(NonFiniteError, match=r"in batch 0 .* of samples 'zwei'\."):
        fit(model, [2, 3, 4, 5])
    for ours, theirs in zip(state(model), before, strict=True):
        np.testing.assert_equal(ours, theirs)
    with pytest.raises(NonFiniteError, match="'zwei'"):
        model.train_on_batch(*batch([2, 3]))
    with pytest.raises(NonFiniteError, match="'zwei'"):
        model.evaluate(*batch(range(6)), batch_size=2, verbose=0)


def test_samples_without_ids_are_named_by_their_place():
    model = distiller(np.nan)
    with pytest.warns(RuntimeWarning, match=r"of samples number 0 of batch 1\."):
        model.fit(IDS, LABELS, batch_size=2, shuffle=False, verbose=0)


def test_an_epoch_without_a_single_step_is_an_error():
    """It once ended with a loss of 0, which looks like a success."""
    with (
        pytest.warns(RuntimeWarning, match="'zwei'"),
        pytest.raises(NonFiniteError, match="All 1 batches of epoch 1 were skipped"),
    ):
        fit(distiller(np.nan), [2, 3])


@pytest.mark.traced
def test_a_gradient_that_is_not_finite_behind_a_finite_loss():
    """The derivative of the square root is infinite at 0."""
    inputs = keras.Input((3,), dtype="int32")
    outputs = ops.sqrt(keras.layers.Embedding(4, 5)(inputs))
    student = keras.Model(inputs, outputs)
    table = np.ones((4, 5))
    table[BAD] = 0
    student.set_weights([table])
    model = BetaKDDistiller(lookup(np.eye(4, 5)), student, ForwardKLEnergy())
    model.compile(optimizer="adam")
    with pytest.warns(RuntimeWarning, match="1 steps of epoch 1 were .* a gradient"):
        fit(model, range(6))
    assert all(np.isfinite(value).all() for value in state(model))
    assert int(model.optimizer.iterations) == 2


@pytest.mark.parametrize(
    "nonfinite, finite",
    [([], True), ([np.nan], False), ([np.inf, -np.inf], False), ([-np.inf], False)],
)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_finite_gradients_are_told_apart(nonfinite, finite, dtype):
    """4,000 entries of 30 are finite, though float16 cannot hold their sum."""
    gradient = np.full(4000, 30.0)
    gradient[1000 : 1000 + len(nonfinite)] = nonfinite
    gradients = [ops.ones((2, 2)), None, ops.cast(ops.array(gradient), dtype)]
    assert bool(all_finite(gradients)) == finite


def test_the_optimizer_is_in_a_weights_file_once(tmp_path):
    """Keras' traversal of a wrapped optimizer would write its moments twice."""
    model, again = distiller(0.0), distiller(0.0)
    fit(model, [0, 1])
    path = str(tmp_path / "x.weights.h5")
    model.save_weights(path)
    moments = []
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: (
                moments.append(name) if getattr(item, "shape", None) == (4, 5) else None
            )
        )
    assert len(moments) == 3, moments  # the student, and two moments of it
    again.load_weights(path)
    for one in (model, again):
        fit(one, [4, 5])
    for ours, theirs in zip(state(model), state(again), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_no_other_policy():
    with pytest.raises(ValueError, match="one of .*Received: 'ignore'"):
        distiller(0.0, on_nonfinite="ignore")


def test_an_optimizer_that_is_built_twice_has_one_count_of_skipped_steps():
    """A second `build` once added a second variable: saved weights no longer loaded."""
    optimizer = FiniteStepsOptimizer(keras.optimizers.SGD(0.5))
    variable = keras.Variable([1.0])
    optimizer.build([variable])
    names = [v.path for v in optimizer.variables]
    optimizer.build([variable])
    assert [v.path for v in optimizer.variables] == names


def test_rows_of_logits_that_are_not_finite():
    inf, nan = np.inf, np.nan
    rows = [
        *([1.0, 2.0, 3.0], [-inf, 2.0, -inf], [-inf, -inf, -inf], [0.0, inf, 1.0]),
        *([nan, 5.0, 1.0], [5.0, nan, 1.0], [1.0, 5.0, nan], [-inf, nan, -inf]),
        *([inf, nan, 1.0], [nan, nan, nan]),
    ]
    logits = ops.convert_to_tensor(np.array([rows], "float32"))
    finite = ops.convert_to_numpy(finite_rows(ModelOutputs(logits=logits)))
    np.testing.assert_array_equal(finite[0], [True, True] + 8 * [False])
    # The student may exclude every class where no label counts.
    lost = unweighted_nonfinite(logits, ops.zeros((1, len(rows))))
    expected = 3 * [False] + 7 * [True]
    np.testing.assert_array_equal(ops.convert_to_numpy(lost)[0], expected)


def test_the_newest_samples_are_named():
    counts = NonFiniteCounts(["task"])
    weights, good = ops.ones((6, 3)), np.ones((6, 3), bool)
    ids = ops.convert_to_tensor(encoded_ids(NAMES))
    for number, bad in enumerate([range(6), [1, 4], []]):
        finite, lost = good.copy(), ~good
        finite[list(bad), 1:] = False
        lost[list(bad)[:1], 0] = True
        rows = [ops.convert_to_tensor(~good), ops.convert_to_tensor(lost)]
        nothing = ops.convert_to_tensor(~good)
        total, finite = ops.convert_to_tensor(1.0), ops.convert_to_tensor(finite)
        named = ids if number else None
        counted = counts.update(total, finite, rows, nothing, weights, named)
        assert bool(counted) == (number == 2)
    assert (counts.teacher.count, counts.student.count) == (16, 2)
    assert counts.unweighted.count == 0
    assert [int(v) for v in (counts.batches, counts.skipped)] == [3, 2]
    first = [f"number {row} of batch 0" for row in range(6)]
    assert counts.teacher.named(0) == (["'one'", "'four'", *first], 1)
    assert counts.teacher.named(1) == (["'one'", "'four'"], 0)
    assert counts.student.named(0) == (["'one'", "number 0 of batch 0"], 1)
    assert counts.unweighted.named(0) == ([], -1)
