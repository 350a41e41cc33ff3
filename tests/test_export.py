"""An exported student answers as the student does, in the families that can do it."""

import keras
import numpy as np
import pytest
from test_families import logits_at_rows, model_of, records
from tiny_families import SUPPORT
from tiny_models import random_image

NAMES = {"torch": "PyTorch", "jax": "JAX", "tensorflow": "TensorFlow"}
BACKEND = keras.backend.backend()
EXPORTED = SUPPORT["`Model.export`"]


def serve(path, inputs):
    """The outputs of the exported file, without the model."""
    if BACKEND == "torch":
        import torch

        inputs = {key: torch.tensor(value) for key, value in inputs.items()}
        return torch.export.load(path).module()(inputs).detach().numpy()
    import tensorflow as tf

    loaded = tf.saved_model.load(path)
    inputs = {key: tf.constant(value) for key, value in inputs.items()}
    return loaded.serve(inputs).numpy()


@pytest.mark.traced
@pytest.mark.parametrize(
    "name", [n for n, where in EXPORTED.items() if NAMES[BACKEND] in where]
)
def test_exported_model_answers_as_the_student(name, tmp_path):
    """Shapes are fixed, as in the README: without that no family exports on JAX."""
    model = model_of(name)
    rows = records(name)
    if name == "Gemma4":  # pools by the width of the widest image of a batch
        rows["images"] = [[random_image(0)], [random_image(1)]]
    expected, weight, inputs = logits_at_rows(model, rows)
    x = {key: np.asarray(inputs["x"][key]) for key in model.input}
    signature = {k: keras.InputSpec(v.dtype, v.shape, name=k) for k, v in x.items()}
    path = str(tmp_path / "student.pt2")
    kind = "torch" if BACKEND == "torch" else "tf_saved_model"
    model.export(path, format=kind, input_signature=[signature], verbose=False)
    logits = serve(path, x)
    got = np.take_along_axis(logits, inputs["positions"][..., None], axis=1)
    used = weight > 0
    np.testing.assert_allclose(got[used], expected[used], rtol=1e-4, atol=3e-5)
