"""What Keras users call on a model: on a distiller it works, or says where it does."""

import keras
import numpy as np
import pytest
from plain_models import linear_model
from tiny_models import tiny_gemma3, vqa_records

from keras_betakd import (
    BetaKDDistiller,
    DistillationPreprocessor,
    FeatureMSEEnergy,
    ForwardKLEnergy,
    InstanceBeta,
)
from keras_betakd.distillation.outputs import DistillationOutputs


def pair():
    teacher, student = tiny_gemma3(width=12), tiny_gemma3()
    preprocessor = DistillationPreprocessor(
        teacher.preprocessor, student.preprocessor, max_response_length=4
    )
    energies = [ForwardKLEnergy(), FeatureMSEEnergy()]
    distiller = BetaKDDistiller(
        teacher, student, energies, InstanceBeta(), preprocessor=preprocessor
    )
    distiller.compile(optimizer="sgd")
    return distiller


@pytest.mark.backends
@pytest.mark.one_of_two("tensorflow")
def test_raw_records_can_be_called_and_predicted_on():
    """Texts ended in an error of Keras' about positional arguments."""
    distiller, records = pair(), vqa_records(2)
    outputs = distiller(records)
    assert isinstance(outputs, DistillationOutputs)
    logits = distiller.predict_on_batch(records)
    assert logits.shape[:2] == (2, 4)
    np.testing.assert_allclose(
        distiller.predict(records, batch_size=1, verbose=0), logits, atol=1e-6
    )
    inputs = distiller.preprocessor(records)[0]
    again = distiller(inputs).log_beta["forward_kl"]
    first = outputs.log_beta["forward_kl"]
    np.testing.assert_allclose(*map(keras.ops.convert_to_numpy, (first, again)))


@pytest.mark.backends
@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)], ids=str)
def test_predict_has_the_shape_of_the_students_own(shape):
    """A classifier's was (N, 1, C)."""

    def model():
        inputs = keras.Input(shape)
        return keras.Model(inputs, keras.layers.Dense(5)(inputs))

    distiller = BetaKDDistiller(model(), model(), ForwardKLEnergy())
    distiller.compile(optimizer="sgd")
    x = np.random.default_rng(0).normal(size=(6, *shape)).astype("float32")
    expected = distiller.student.predict(x, verbose=0)
    for found in (
        distiller.predict(x, batch_size=4, verbose=0),
        distiller.predict_on_batch(x),
        distiller.predict({"student": x, "teacher": 0 * x}, verbose=0),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_summary_counts_the_parameters():
    """`count_params` had the counters of non-finite values in it."""
    distiller, lines = pair(), []
    distiller.summary(print_fn=lines.append)
    total = int(lines[-1].split()[1].replace(",", ""))
    assert total == distiller.count_params()
    models = distiller.teacher, distiller.student, *distiller.betas.values()
    projected = (8 + 1) * 12  # from the student's width to the teacher's
    assert total == sum(model.count_params() for model in models) + projected


@pytest.mark.parametrize(
    "name, instead",
    {
        "export": r"distiller.student.export\(path\)",
        "save_to_preset": r"distiller.student.save_to_preset\(folder\)",
        "quantize": r"teacher.quantize\(mode\) before",
        "enable_lora": r"student.backbone.enable_lora\(rank\) before",
    }.items(),
)
def test_what_a_distiller_does_not_do_says_where_it_is_done(name, instead):
    """`quantize` made teacher and student int8, the rest ended in AttributeErrors."""
    distiller = BetaKDDistiller(linear_model(1), linear_model(2), ForwardKLEnergy())
    with pytest.raises(ValueError, match=f"no `{name}` of its own: call .*{instead}"):
        getattr(distiller, name)("int8")
    assert distiller.student.layers[-1].kernel.dtype == "float32"
