"""What is said of NaN and infinity: where, in which samples, and what was lost."""

import warnings

import keras
import numpy as np
import pytest
from keras import ops
from test_nonfinite import BAD, IDS, LABELS, batch, distiller, fit
from test_nonfinite_teacher import lookup

from keras_betakd import BetaKDDistiller, ForwardKLEnergy, NonFiniteError, TaskBeta

pytestmark = pytest.mark.backends


def messages(function, *args, **options):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        function(*args, **options)
    return [str(w.message) for w in found if w.category is RuntimeWarning]


def test_a_validation_is_reported_apart_from_the_training_before_it():
    """It was reported as a batch of the epoch, counted on from those of training."""
    (found,) = messages(
        fit, distiller(np.nan), [0, 1, 4, 5], validation_data=batch([4, 2]),
        validation_batch_size=1,
    )  # fmt: skip
    assert "in the validation of epoch 1, the last in batch 1 " in found
    assert "of samples 'zwei'. 1 batches" in found
    both = messages(
        fit, distiller(np.nan), range(6), validation_data=batch([2, 4]),
        validation_batch_size=1,
    )  # fmt: skip
    assert ["in epoch 1, " in both[0], "the last in batch 0 " in both[1]] == [True] * 2


def test_a_validation_of_nan_does_not_end_as_a_training_that_learned_nothing():
    """Two lost batches of the validation counted as those of two training steps."""
    with (
        pytest.warns(RuntimeWarning, match="'zwei'"),
        pytest.raises(NonFiniteError, match="All 1 batches of the validation of epoch"),
    ):
        fit(distiller(np.nan), [0, 1], validation_data=batch([2, 3]))


def test_an_evaluation_of_nan_says_that_no_metric_means_anything():
    with (
        pytest.warns(RuntimeWarning, match="in this evaluation, .*'zwei'"),
        pytest.raises(NonFiniteError, match="evaluation were .*no metric means") as e,
    ):
        distiller(np.nan).evaluate(*batch([2, 3]), verbose=0)
    assert "learned" not in str(e.value)


def test_a_batch_that_raises_is_called_what_it_is():
    model = distiller(np.nan, on_nonfinite="raise")
    for function in (model.evaluate, model.test_on_batch):
        with pytest.raises(NonFiniteError, match=r"in this batch,.*no metric; `comp"):
            function(*batch([2, 3]))
    with pytest.raises(NonFiniteError, match="in this step, .*nor betas were changed"):
        model.train_on_batch(*batch([2, 3]))
    with pytest.raises(NonFiniteError, match="in this batch, "):
        fit(model, [0, 1], validation_data=batch([2, 3]))


def student_of(layer, table):
    """A student whose logits are a layer's of the rows of a table."""
    inputs = keras.Input((3,), dtype="int32")
    rows = keras.layers.Embedding(4, 5, name="rows")(inputs)
    student = keras.Model(inputs, layer(rows))
    student.get_layer("rows").set_weights([table])
    return student


def test_one_step_whose_gradient_is_not_finite():
    table = np.ones((4, 5))
    table[BAD] = 0  # where the derivative of the square root is infinite
    model = BetaKDDistiller(
        lookup(np.eye(4, 5)), student_of(ops.sqrt, table), ForwardKLEnergy()
    )
    model.compile(optimizer="adam", on_nonfinite="raise")
    with pytest.raises(NonFiniteError, match="^This step was skipped since a gradient"):
        model.train_on_batch(*batch([2, 3]))


def test_a_student_of_nan_at_a_label_without_weight_is_named():
    """Its loss is none, but its gradient is NaN: the step was skipped without a word
    of the sample."""
    table, layer = np.ones((4, 5)), keras.layers.Dense(5)
    table[BAD] = np.nan
    model = BetaKDDistiller(
        lookup(np.eye(4, 5)), student_of(layer, table), ForwardKLEnergy()
    )
    model.compile(optimizer="adam")
    weight = (IDS != BAD).astype("float32")
    x, _ = batch(range(6))
    found = messages(
        model.fit, x, LABELS, sample_weight=weight, batch_size=2, shuffle=False,
        verbose=0,
    )  # fmt: skip
    assert len(found) == 2
    assert "1 steps of epoch 1 were skipped since a gradient" in found[0]
    assert "at 1 labels of weight 0, the last in batch 1 " in found[1]
    assert "of samples 'zwei': look at these" in found[1]
    assert np.isfinite(layer.get_weights()[0]).all()


def test_the_beta_of_an_evaluation_without_a_finite_row_is_its_own():
    """It was 0, which no beta can be."""
    model = distiller(np.nan, beta=lambda: TaskBeta(initial_value=3.0))
    with pytest.warns(RuntimeWarning, match="'zwei'"):
        values = model.test_on_batch(*batch([2, 3]), return_dict=True)
    assert float(values["forward_kl_beta"]) == pytest.approx(3.0, rel=1e-5)
