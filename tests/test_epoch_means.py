"""What an epoch reports does not depend on how its data is cut into batches."""

import numpy as np
import pytest
from plain_models import linear_model, token_batch

from keras_betakd import BetaKDDistiller, FixedBeta, ForwardKLEnergy


@pytest.mark.backends
@pytest.mark.parametrize("reduction", ["example", "token"])
def test_means_with_uneven_weights_are_those_of_the_whole(reduction):
    """Batches once counted by their examples, whatever these weigh."""
    x, y, weight = token_batch(batch=8)
    weight *= np.array([1, 5, 1, 0.1, 3, 0, 2, 1], "float32")[:, None]
    model = BetaKDDistiller(
        linear_model(1),
        linear_model(2),
        ForwardKLEnergy(),
        FixedBeta(0.5),
        reduction=reduction,
    )
    model.compile(weighted_metrics=["sparse_categorical_accuracy"])
    whole, *parts = [
        model.evaluate(
            *(x, y, size),
            sample_weight=weight,
            verbose=0,
            return_dict=True,
        )
        for size in (8, 4, 2, 1)
    ]
    for part in parts:
        for name, value in whole.items():
            np.testing.assert_allclose(part[name], value, rtol=1e-5, err_msg=name)
