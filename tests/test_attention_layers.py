"""Attention of chosen decoder blocks as a feature, averaged over a group of them."""

import json

import keras
import numpy as np
import pytest
from keras import ops
from plain_models import no_task_loss
from test_features import numbers, pair
from test_gemma3_pair import set_weights
from tiny_families import tiny_mobilevlm
from tiny_models import tiny_gemma3, vqa_records

import keras_betakd as kd
from keras_betakd.models.hooks import recorded


def grouped(**options):
    return kd.AttentionEnergy([1, -1], student_layers=1, name="attention", **options)


def models():
    return tiny_gemma3(16, num_layers=3), tiny_gemma3(num_layers=2)


def attention64(model, x, layers):
    """The mean attention of layers, (B, T, T), from the softmax in each."""
    blocks = [model.backbone.transformer_layers[i].attention for i in layers]
    with recorded(*(block.softmax for block in blocks)) as calls:
        model.backbone(x)
    found = [ops.convert_to_numpy(call[0][2]).astype("float64") for call in calls]
    return np.mean([a.mean(axis=(1, 2)) for a in found], axis=0)


@pytest.mark.backends
def test_a_group_of_layers_against_the_softmax_of_each():
    """In float64: teacher's blocks 1 and 2, averaged, and the student's block 1."""
    distiller = pair({"attention": grouped()}, *models())
    # Attention of new models is nearly even.
    for view in (distiller.teacher_parts[0].view, distiller.student_view):
        for layer in view.attention_layers():
            layer.query_norm.scale.assign(20.0 + layer.query_norm.scale)
    inputs, _, weight = distiller.preprocessor(vqa_records(3))
    logs = numbers(distiller.test_on_batch(vqa_records(3), return_dict=True))
    at_image = {}
    for role, layers in (("teacher", (1, 2)), ("student", (1,))):
        x = {**inputs["student"], **inputs[role]}
        attention = attention64(getattr(distiller, role), x, layers)
        rows = inputs[f"{role}_positions"][..., None]
        rows = np.take_along_axis(attention, rows, axis=1)
        places = x["vision_indices"].astype(int)[:, None]
        at_image[role] = np.take_along_axis(rows, places, axis=2)
    gap = ((at_image["teacher"] - at_image["student"]) ** 2).sum(-1)
    counted = weight != 0
    expected = ((gap * counted).sum(1) / counted.sum(1)).mean()
    np.testing.assert_allclose(logs["attention"], expected, rtol=1e-4)


@pytest.mark.traced
def test_the_student_learns_where_to_look():
    teacher, student = models()
    distiller = pair({"attention": grouped()}, teacher, student)
    distiller.compile(optimizer=keras.optimizers.Adam(0.01), loss=no_task_loss)
    records = vqa_records(4)
    history = distiller.fit(records, epochs=8, shuffle=False, verbose=0).history
    assert history["attention"][-1] < 0.7 * history["attention"][0]


def test_a_family_without_attention_and_a_block_that_is_not_there():
    with pytest.raises(ValueError, match="attention of MobileVLM.* cannot be read"):
        kd.BetaKDDistiller(tiny_mobilevlm(), tiny_mobilevlm(), grouped())
    for layers in (3, [0, -4]):
        energies = [kd.AttentionEnergy(), kd.AttentionEnergy(layers, name="deep")]
        expected = "Energy 'deep', in the teacher: .* 3 decoder blocks.* block (3|-4)"
        with pytest.raises(ValueError, match=expected):
            kd.BetaKDDistiller(*map(set_weights, models(), (1, 2)), energies)


@pytest.mark.parametrize("layers", [None, [], "0", 1.0, True, [0, "1"]])
def test_numbers_that_are_none_are_refused(layers):
    with pytest.raises(ValueError, match="`student_layers` must be the number"):
        kd.AttentionEnergy(student_layers=layers)


def test_configuration_survives():
    saved = json.loads(json.dumps(keras.saving.serialize_keras_object(grouped())))
    again = keras.saving.deserialize_keras_object(saved)
    assert (again.teacher_layers, again.student_layers) == ((1, -1), (1,))
    assert again.get_config() == grouped().get_config()
