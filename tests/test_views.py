"""Views: the logits of the gathered rows are the model's own."""

import keras
import keras_hub
import numpy as np
import pytest
from keras import ops
from marks import kept
from test_families import model_of
from tiny_models import (
    random_image,
    tiny_gemma3,
    tiny_gemma_text,
    tiny_pali_gemma,
    vqa_records,
)

from keras_betakd import DistillationPreprocessor
from keras_betakd.models import CausalLMView, LogitsView, register_view, view_of
from keras_betakd.preprocessing.model_inputs import model_inputs


def text_records():
    return {
        "prompts": ["what color is it?", "is there a circle?"],
        "responses": ["red", "yes"],
    }


@pytest.mark.backends
@pytest.mark.parametrize(
    "make, records",
    [
        (tiny_gemma3, vqa_records(2)),
        (tiny_pali_gemma, vqa_records(2)),
        (tiny_gemma_text, text_records()),
        (lambda: tiny_gemma_text(final_logit_soft_cap=2.0), text_records()),
    ],
    ids=["gemma3", "pali_gemma", "gemma", "gemma_soft_cap"],
)
def test_rows_equal_the_models_own_logits(make, records):
    model = make()
    view = view_of(model)
    preprocessor = model.preprocessor
    x, y, _ = DistillationPreprocessor(preprocessor, preprocessor, 6)(records)
    inputs, positions = x["student"], x["student_positions"]
    hidden = view.hidden_states(inputs)
    rows = ops.take_along_axis(
        hidden, ops.expand_dims(view.row_positions(ops.array(positions)), -1), axis=1
    )
    got = ops.convert_to_numpy(view.head(rows))
    whole = ops.convert_to_numpy(model(inputs))
    expected = np.take_along_axis(whole, positions[..., None], axis=1)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert got.shape == (2, 6, preprocessor.tokenizer.vocabulary_size())
    mask = ops.convert_to_numpy(view.padding_mask(inputs))
    assert mask.shape == tuple(hidden.shape[:2])
    # The labels are the next tokens: keras-hub has shifted them already.
    tokens = np.asarray(inputs["token_ids"])
    first = np.take_along_axis(tokens, positions[:, 1:2], 1)
    np.testing.assert_array_equal(first, y[:, :1])


@pytest.mark.parametrize("make", [tiny_gemma3, tiny_pali_gemma])
def test_vision_tower_is_the_encoder_without_its_projector(make):
    model = make()
    (tower,) = view_of(model).vision_tower()
    assert tower.name == "image_encoder"
    trained = len(model.trainable_variables)
    tower.trainable = False
    assert 0 < len(model.trainable_variables) < trained


@pytest.mark.backends
def test_text_only_sample_has_the_numbers_it_has_alone():
    """An empty image beside it must change nothing, and must not raise an error."""
    model = tiny_gemma3()
    view, preprocessor = view_of(model), model.preprocessor
    preprocess = DistillationPreprocessor(preprocessor, preprocessor, 4)
    mixed = {
        "prompts": ["<image>\nwhat color is it?", "is there a circle?"],
        "responses": ["red", "yes"],
        "images": [[random_image(1)], []],
    }
    alone = {"prompts": mixed["prompts"][1:], "responses": ["yes"], "images": [None]}
    together = view.hidden_states(preprocess(mixed)[0]["student"])
    single = view.hidden_states(preprocess(alone)[0]["student"])
    tokens = preprocess(alone)[0]["student"]
    text = {key: tokens[key] for key in ("token_ids", "padding_mask")}
    length = int(np.sum(tokens["padding_mask"]))
    for other in (single, text_only_twin(model)(text)):
        np.testing.assert_allclose(
            ops.convert_to_numpy(together)[1, :length],
            ops.convert_to_numpy(other)[0, :length],
            rtol=1e-4,
            atol=1e-5,
        )


@pytest.mark.backends
@pytest.mark.parametrize("name", kept(["Gemma3", "Gemma4"], "Gemma3"))
def test_as_many_records_as_image_tokens(name):
    """On TensorFlow their image features were once written into each other."""
    model = model_of(name, **({"max_images": 1} if name == "Gemma3" else {}))
    view, preprocessor = view_of(model), model.preprocessor
    preprocess = DistillationPreprocessor(preprocessor, preprocessor, 4)
    size = preprocess(vqa_records(1))[0]["student"]["vision_indices"].shape[1]
    together = preprocess(vqa_records(size))[0]["student"]
    with view.patched():
        expected = [
            view.hidden_states({k: v[i : i + 1] for k, v in together.items()})
            for i in range(len(together["token_ids"]))
        ]
        found = view.hidden_states(together)
    expected = np.concatenate([ops.convert_to_numpy(x) for x in expected])
    # Another record's image is off by more than 1. A norm divides by the length of
    # vectors of four numbers, some of which are short: of roundings of 1e-7 it makes
    # 2e-5, and of the much shorter ones of a model that is not trained 7e-4.
    assert np.abs(expected[0] - expected[1]).max() > 1
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected, atol=5e-4)


def text_only_twin(model):
    """The same language model without a vision tower.

    Not the model itself on an empty batch of images, which is what keras-hub makes
    of a missing one: TensorFlow's convolution fails on that on some processors.
    """
    config = {**model.backbone.get_config(), "vision_encoder": None}
    twin = keras_hub.models.Gemma3Backbone.from_config(config)
    for layer in twin.layers:
        layer.set_weights(model.backbone.get_layer(layer.name).get_weights())
    return twin


def test_images_of_other_sizes_do_not_depend_on_their_neighbours():
    """keras-hub pads a batch to its largest image before it resizes."""
    preprocessor = tiny_gemma3().preprocessor
    small, large = random_image(1, 20, 30), random_image(2, 50, 40)
    records = {"prompts": ["<image>", "<image>"], "images": [[small], [large]]}
    together = model_inputs(preprocessor, records)["images"]
    alone = model_inputs(preprocessor, {"prompts": ["<image>"], "images": [[small]]})[
        "images"
    ]
    np.testing.assert_array_equal(together[0], alone[0])
    own = (
        np.asarray(preprocessor.image_converter(small.astype("float32"))) + 1
    ) * 127.5
    np.testing.assert_allclose(together[0, 0], own, atol=1e-3)


def test_a_plain_model_gives_logits_only():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    assert type(view_of(model)) is LogitsView
    with pytest.raises(ValueError, match="must be `keras.Model`s"):
        view_of("gemma3_4b")


def test_an_unknown_multimodal_family_is_refused_until_registered():
    class OtherCausalLM(type(tiny_gemma_text())):
        pass

    text = tiny_gemma_text()
    model = OtherCausalLM(backbone=text.backbone, preprocessor=text.preprocessor)
    assert type(view_of(model)) is CausalLMView
    blip = tiny_gemma3().backbone
    model.backbone = blip
    with pytest.raises(ValueError, match="No view is known for .* OtherCausalLM"):
        view_of(model)

    class OtherView(CausalLMView):
        pass

    register_view("OtherCausalLM", OtherView)
    assert type(view_of(model)) is OtherView
    with pytest.raises(ValueError, match="must be a subclass"):
        register_view("OtherCausalLM", dict)
