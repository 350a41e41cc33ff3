"""An error of the data leaves the model as the last finished step left it."""

import keras
import numpy as np
import pytest
from marks import kept
from plain_models import CLASSES, linear_model, token_batch

from keras_betakd import BetaKDDistiller, ForwardKLEnergy

pytestmark = pytest.mark.backends

X, Y, _ = token_batch(batch=4)


class Data(keras.utils.PyDataset):
    """Four batches; one of them has a label that is no class."""

    def __init__(self, bad):
        super().__init__()
        self.bad = bad

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return X, np.full_like(Y, CLASSES if index == self.bad else 1)


def distiller():
    keras.utils.set_random_seed(0)
    distiller = BetaKDDistiller(linear_model(1), linear_model(2), ForwardKLEnergy())
    distiller.compile(optimizer=keras.optimizers.Adam(0.1))
    return distiller


def values(model):
    variables = [*model.variables, *model.optimizer.variables]
    return [keras.ops.convert_to_numpy(v.value) for v in variables]


def losses(model):
    return model.evaluate(X, Y, verbose=0, return_dict=True)


@pytest.mark.parametrize("bad", kept([0, 2], 2))
@pytest.mark.parametrize(
    "method", kept(["fit", "evaluate", "validation"], "validation")
)
def test_a_refused_batch_takes_no_value_away(method, bad):
    """On JAX the variables were left without values: the next call ended in
    "'NoneType' object is not callable", and what had been trained was lost."""
    model, whole = distiller(), distiller()
    for each in (model, whole):
        each.fit(Data(bad=None), epochs=1, verbose=0, shuffle=False)
    # TensorFlow hands an error of the data on as an `InvalidArgumentError` of its own.
    with pytest.raises(ValueError, match="is no class"):
        if method == "fit":
            model.fit(Data(bad), verbose=0, shuffle=False)
        elif method == "evaluate":
            model.evaluate(Data(bad), verbose=0)
        else:
            good = Data(bad=None)
            model.fit(good, verbose=0, shuffle=False, validation_data=Data(bad))
    assert all(value is not None for value in values(model))
    steps = {"fit": bad, "evaluate": 0, "validation": 4}[method]
    for _ in range(steps):
        whole.train_on_batch(X, np.ones_like(Y))
    found, expected = losses(model), losses(whole)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_a_fit_that_ends_at_its_first_batch_can_be_followed_by_another():
    model = distiller()
    with pytest.raises(ValueError, match="class"):
        model.fit(Data(0), verbose=0, shuffle=False)
    model.fit(Data(bad=None), verbose=0, shuffle=False)
    assert np.isfinite(losses(model)["task_loss"])
