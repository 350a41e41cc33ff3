"""What `compile` refuses or warns of: torch.compile, and sums of unequal batches."""

import keras
import numpy as np
import pytest
from plain_models import linear_model, token_batch
from strict_warnings import no_user_warnings

from keras_betakd import BetaKDDistiller, FixedBeta, ForwardKLEnergy

ON_TORCH = keras.backend.backend() == "torch"


def distiller(reduction="example"):
    pair = linear_model(0), linear_model(1)
    return BetaKDDistiller(*pair, ForwardKLEnergy(), FixedBeta(2.0), None, reduction)


def compiled(reduction="example", parts=None, **kwargs):
    model = distiller(reduction)
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=parts)
    model.compile(optimizer=optimizer, **kwargs)
    return model


if ON_TORCH:

    @pytest.mark.parametrize("value", [True, 1])
    def test_the_step_is_not_compiled(value):
        """It took nine minutes for a toy, and began again in later epochs."""
        with pytest.raises(ValueError, match="torch.compile.*jit_compile="):
            distiller().compile(optimizer="sgd", jit_compile=value)

    def test_a_compiled_model_is_no_keras_model():
        import torch

        pair = torch.compile(linear_model(0)), linear_model(1)
        with pytest.raises(ValueError, match="not what `torch.compile`"):
            BetaKDDistiller(*pair, ForwardKLEnergy())


@pytest.mark.backends
@pytest.mark.traced
def test_the_ways_to_run_a_step_give_one_result():
    x, y, weight = token_batch()
    ways = [{}, {"run_eagerly": True}, {"jit_compile": False}, {"jit_compile": "auto"}]
    if not ON_TORCH:
        ways.append({"jit_compile": True})
    results = []
    for way in ways:
        model = compiled(**way)
        results.append(model.train_on_batch(x, y, weight))
        np.testing.assert_allclose(results[-1], results[0], rtol=1e-5)


def change(reduction, parts, weight):
    """How one optimizer step changes the student, on a batch cut into `parts`."""
    x, y, _ = token_batch()
    model = compiled(reduction, parts if parts > 1 else None)
    before = model.student.get_weights()
    size = len(x) // parts
    for i in range(parts):
        rows = slice(i * size, (i + 1) * size)
        model.train_on_batch(x[rows], y[rows], weight[rows])
    pairs = zip(model.student.get_weights(), before, strict=True)
    return np.concatenate([(new - old).ravel() for new, old in pairs])


def test_accumulated_gradients_of_means_over_tokens_are_warned_of():
    """Two halves of 5 and 1 tokens moved the student elsewhere than the whole."""
    weight = token_batch()[2]
    weight[3, 1:] = 0
    with no_user_warnings():
        compiled("token")
        compiled("example", 2)
    with pytest.warns(UserWarning, match="gradient_accumulation_steps=2"):
        halves = change("token", 2, weight)
    assert (
        np.abs(halves - change("token", 1, weight)).max() > 0.1 * np.abs(halves).max()
    )
    # As the warning says: equal where each half has as many examples with a token.
    weight[2, 0] = 1
    halves = change("example", 2, weight)
    np.testing.assert_allclose(halves, change("example", 1, weight), atol=1e-6)
