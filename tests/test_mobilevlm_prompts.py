"""Prompts, labels and images as the released LLaVA and MobileVLM make them."""

import json

import keras
import numpy as np
import pytest
from keras import ops
from mobilevlm_golden import GOLDEN
from tiny_models import random_image

from keras_betakd.mobilevlm import (
    IMAGE_TOKEN_ID,
    MobileVLMCausalLMPreprocessor,
    MobileVLMImageConverter,
    MobileVLMTokenizer,
)
from keras_betakd.mobilevlm.conversation import TEMPLATES

CASES = json.loads((GOLDEN / "llava_prompts.json").read_text())
CLIP_IMAGES = np.load(GOLDEN / "clip_images.npz")
# The released code trains nothing of these, with a warning that scrolls by.
MASKED = {
    "answer_contains_separator": "has ' ASSISTANT: ' in its text",
    "empty_answer": "has an empty response",
}
TOKENS = 4


def tokenizer():
    return MobileVLMTokenizer(str(GOLDEN / "llama_tiny.model"))


def preprocessor(**kwargs):
    settings = {"num_image_tokens": TOKENS, "sequence_length": 160, **kwargs}
    return MobileVLMCausalLMPreprocessor(
        tokenizer(), MobileVLMImageConverter((16, 16)), **settings
    )


def turns(case):
    """Prompts and responses; the data loader handles a leading answer."""
    said = [m for m in case["conversations"] if m["value"] != "ignored"]
    prompts = [m["value"] for m in said if m["from"] == "human"]
    return prompts, [m["value"] for m in said if m["from"] == "gpt"]


def record(case, **kwargs):
    prompts, responses = turns(case)
    images = [random_image(0)] if case["has_image"] else []
    return {"prompts": [prompts], "responses": [responses], "images": [images]}


def named(kind):
    return pytest.mark.parametrize("case", CASES[kind], ids=lambda case: case["name"])


@named("train")
def test_token_ids_and_labels_of_conversations(case):
    template = TEMPLATES[case["version"]]()
    ids, trained = template.encode(*turns(case), tokenizer())
    if case["name"] == "empty_answer":
        return
    assert ids == case["input_ids"]
    if case["name"] not in MASKED:
        labels = np.where(trained, ids, -100)
        np.testing.assert_array_equal(labels, case["labels"])


@named("train")
def test_what_the_model_is_trained_on(case):
    """Labels are shifted by one, with all image tokens; nothing is masked silently."""
    layer = preprocessor(template=case["version"])
    if case["name"] in MASKED:
        with pytest.raises(ValueError, match=MASKED[case["name"]]):
            layer(record(case))
        return
    x, y, weight = layer(record(case))
    times = [TOKENS if i == IMAGE_TOKEN_ID else 1 for i in case["input_ids"]]
    ids, labels = (np.repeat(case[k], times) for k in ("input_ids", "labels"))
    size = len(ids) - 1
    np.testing.assert_array_equal(x["token_ids"][0, :size], ids[:-1])
    assert x["padding_mask"][0].sum() in (size, size + 1)
    np.testing.assert_array_equal(weight[0, :size], labels[1:] != -100)
    np.testing.assert_array_equal(
        y[0, :size][labels[1:] != -100], labels[1:][labels[1:] != -100]
    )
    assert not weight[0, size:].any()


@named("eval")
def test_token_ids_of_questions(case):
    layer = preprocessor(max_images_per_prompt=2)
    images = [[random_image(i) for i in range(case["question"].count("<image>"))]]
    x = layer.generate_preprocess({"prompts": [case["question"]], "images": images})
    times = [TOKENS if i == IMAGE_TOKEN_ID else 1 for i in case["input_ids"]]
    expected = np.repeat(case["input_ids"], times)
    mask = ops.convert_to_numpy(x["padding_mask"])[0]
    np.testing.assert_array_equal(
        ops.convert_to_numpy(x["token_ids"])[0, mask], expected
    )


@pytest.mark.parametrize("aspect_ratio, key", [("pad", "pad"), ("crop", "square")])
@pytest.mark.parametrize("name", sorted({key.split("/")[0] for key in CLIP_IMAGES}))
def test_images_equal_pillows(name, aspect_ratio, key):
    converter = MobileVLMImageConverter((56, 56), aspect_ratio)
    got = converter(CLIP_IMAGES[f"{name}/image"])
    expected = CLIP_IMAGES[f"{name}/{key}_pixel_values"].transpose(1, 2, 0)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def test_images_may_be_floats_and_in_batches():
    converter = MobileVLMImageConverter((16, 16))
    image = random_image(3, 20, 12)
    expected = converter(image)
    for batch in ([image, image], np.stack([image, image]).astype("float32")):
        np.testing.assert_array_equal(converter(batch), [expected, expected])


def test_a_conversation_goes_on():
    """Earlier answers are part of the prompt, with the end mark after each."""
    layer = preprocessor()
    x = layer.generate_preprocess(
        {"prompts": [["hello", "bye"]], "responses": [["hi."]]}
    )
    whole, _, _ = layer({"prompts": [["hello", "bye"]], "responses": [["hi.", "x"]]})
    size = int(ops.convert_to_numpy(x["padding_mask"]).sum())
    got = ops.convert_to_numpy(x["token_ids"])[0, :size]
    np.testing.assert_array_equal(got, whole["token_ids"][0, :size])


def test_text_of_answers_has_no_images_and_marks():
    layer = preprocessor()
    words = tokenizer()("two people")
    ids = [1, IMAGE_TOKEN_ID, *(int(i) for i in words), 2, 0]
    outputs = {"token_ids": [ids], "padding_mask": [[1] * (len(ids) - 1) + [0]]}
    outputs = {key: ops.convert_to_tensor(value) for key, value in outputs.items()}
    assert layer.generate_postprocess(outputs) == ["two people"]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"responses": [["a", "b"]]}, "1 prompts, 2 responses"),
        ({"prompts": [[""]], "images": [[]]}, "empty prompt"),
        ({"prompts": [["say </s>"]], "images": [[]]}, "has '</s>' in its text"),
        ({"images": [[]]}, r"0 image\(s\) and 1 image mark"),
        ({"images": [[random_image(0)] * 2]}, r"2 image\(s\) and 1 image mark"),
        ({"responses": [["word " * 200]]}, "sequence_length of .* more than 160"),
    ],
)
def test_records_that_cannot_be_trained_are_refused_by_name(wrong, message):
    good = {
        "ids": ["q7"],
        "prompts": [["<image>\nwhat"]],
        "responses": [["red"]],
        "images": [[random_image(0)]],
    }
    preprocessor()(good)
    with pytest.raises(ValueError, match=f"'q7'.*{message}|{message}.*'q7'"):
        preprocessor()({**good, **wrong})


def test_captions_have_one_image():
    layer = preprocessor(template="plain")
    with pytest.raises(ValueError, match="1 prompts, 0 images in record"):
        layer({"prompts": ["what"], "responses": ["red"]})


def test_settings_survive_a_config():
    layer = preprocessor(template="plain", max_images_per_prompt=3)
    layer.image_converter = MobileVLMImageConverter((28, 28), "crop")
    other = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(layer)
    )
    for name in ("template", "max_images_per_prompt", "num_image_tokens"):
        assert getattr(other, name) == getattr(layer, name)
    assert other.sequence_length == 160
    assert other.image_converter.image_size == (28, 28)
    assert other.image_converter.aspect_ratio == "crop"


def test_token_counts_are_what_a_record_needs():
    layer = preprocessor()
    rows = {"prompts": [["<image>\nwhat", "why"]], "responses": [["red", "so"]]}
    ((needed, trained),) = layer.token_counts(rows)
    layer.sequence_length = needed
    _, _, weight = layer({**rows, "images": [[random_image(0)]]})
    assert weight.sum() == trained and weight[0, -1] == 1
    layer.sequence_length = needed - 1
    with pytest.raises(ValueError, match=f"needs a sequence_length of {needed} "):
        layer({**rows, "images": [[random_image(0)]]})
