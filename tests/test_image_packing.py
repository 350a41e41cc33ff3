"""Images are resized once, and are what keras-hub's own preprocessor makes of them."""

import keras
import keras_hub
import numpy as np
import pytest
from tiny_families import FAMILIES, VISION
from tiny_models import IMAGE_SIZE, random_image, tiny_gemma3, vqa_records

from keras_betakd import DistillationPreprocessor
from keras_betakd.preprocessing import image_inputs, model_inputs
from keras_betakd.preprocessing.changed_preprocessor import changed_preprocessor
from keras_betakd.preprocessing.model_inputs import training_inputs


def as_numpy(batch):
    return keras.tree.map_structure(keras.ops.convert_to_numpy, batch)


def expect_equal(ours, theirs):
    keras.tree.assert_same_structure(ours, theirs)
    for one, other in zip(
        keras.tree.flatten(ours), keras.tree.flatten(theirs), strict=True
    ):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


@pytest.mark.backends
@pytest.mark.parametrize(
    "settings",
    [
        {"scale": 1 / 127.5, "offset": -1.0},
        {"scale": [0.1, 0.2, 0.3], "offset": [0.5, -0.5, 0.0]},
        {"scale": 1 / 255},
        {},
    ],
    ids=["scalars", "channels", "scale", "plain"],
)
def test_images_are_those_of_keras_hub_to_the_bit(settings):
    """It is given small images for the text: the others it copied a dozen times."""
    preprocessor = tiny_gemma3().preprocessor
    preprocessor.image_converter = keras_hub.layers.Gemma3ImageConverter(
        image_size=(IMAGE_SIZE, IMAGE_SIZE), **settings
    )
    inputs = model_inputs(preprocessor, vqa_records())
    expected = as_numpy(preprocessor(inputs))
    expect_equal(as_numpy(training_inputs(preprocessor, inputs)), expected)


def test_what_is_set_on_a_preprocessor_holds():
    preprocessor = tiny_gemma3().preprocessor
    preprocessor.add_end_token = False
    inputs = model_inputs(preprocessor, vqa_records())
    found = training_inputs(preprocessor, inputs, sequence_length=40)
    expected = preprocessor(inputs, sequence_length=40)
    expect_equal(as_numpy(found), as_numpy(expected))


def test_a_changed_preprocessor_leaves_the_first_one_and_shares_its_layers():
    """`copy.copy` of a Keras layer writes and reads a file, for every batch."""
    preprocessor = tiny_gemma3().preprocessor
    unended = changed_preprocessor(preprocessor, add_end_token=False)
    assert (preprocessor.add_end_token, unended.add_end_token) == (True, False)
    assert unended.tokenizer is preprocessor.tokenizer
    assert changed_preprocessor(preprocessor, add_end_token=False) is unended
    preprocessor.sequence_length = 50
    again = changed_preprocessor(preprocessor, add_end_token=False)
    assert (again.sequence_length, again is unended) == (50, False)


def test_a_converter_of_the_user_s_own_is_called():
    class Inverted(keras_hub.layers.Gemma3ImageConverter):
        def call(self, inputs):
            return 255.0 - super().call(inputs)

    preprocessor = tiny_gemma3().preprocessor
    preprocessor.image_converter = Inverted(image_size=(IMAGE_SIZE, IMAGE_SIZE))
    inputs = model_inputs(preprocessor, vqa_records())
    x, _, _ = as_numpy(training_inputs(preprocessor, inputs))
    np.testing.assert_array_equal(x["images"], 255.0 - np.asarray(inputs["images"]))


def test_an_image_is_resized_once_for_two_models_of_one_converter(monkeypatch):
    teacher, student = tiny_gemma3(width=16), tiny_gemma3()
    records = vqa_records()
    records["images"] = [
        [random_image(i, 2 * IMAGE_SIZE, 2 * IMAGE_SIZE)] for i in range(4)
    ]
    sizes, resized = [], image_inputs.resized

    def noted(image, converter):
        sizes.append(image.shape[0])
        return resized(image, converter)

    monkeypatch.setattr(image_inputs, "resized", noted)
    pair = teacher.preprocessor, student.preprocessor
    x, _, _ = DistillationPreprocessor(*pair, 6)(records)
    assert sizes.count(2 * IMAGE_SIZE) == 4
    own = training_inputs(pair[1], model_inputs(pair[1], records))[0]["images"]
    np.testing.assert_array_equal(x["student"]["images"], as_numpy(own))


@pytest.mark.parametrize("name", VISION)
def test_resizing_once_changes_no_family_s_inputs(name):
    preprocessor = FAMILIES[name]().preprocessor
    other = changed_preprocessor(preprocessor)
    image = random_image(0, 3 * IMAGE_SIZE, 2 * IMAGE_SIZE)
    prompt = "<image>\nwhat color is the shape?"
    records = {"prompts": [prompt], "responses": ["red"], "images": [[image]]}
    x, _, _ = DistillationPreprocessor(other, preprocessor, 8)(records)
    own, _, _ = training_inputs(preprocessor, model_inputs(preprocessor, records))
    expect_equal(as_numpy(x["student"]), as_numpy(own))
