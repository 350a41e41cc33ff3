"""Raw records are checked where they enter: keys, ids, texts; nothing is guessed."""

import copy
import warnings

import numpy as np
import pytest
import tensorflow as tf
from tiny_families import FAMILIES
from tiny_models import random_image, tiny_gemma3, tiny_gemma_text, vqa_records

from keras_betakd import (
    BetaKDDistiller,
    DistillationPreprocessor,
    ForwardKLEnergy,
    cache_teacher,
)
from keras_betakd.evaluation import generate_answers
from keras_betakd.preprocessing import model_inputs
from keras_betakd.preprocessing.record_checks import checked_records, expect_known_keys
from keras_betakd.preprocessing.unknown_tokens import unknown_id

SURROGATE = "what color\ud800"


@pytest.fixture(scope="module")
def preprocessor():
    gemma3 = tiny_gemma3().preprocessor
    return DistillationPreprocessor(gemma3, gemma3, 8)


def text_records(**changed):
    records = {"ids": ["a", "b"], "prompts": ["hi", "hi"], "responses": ["red", "red"]}
    return {**records, **changed}


# --- Texts and ids ---

NO_TEXTS = [None, float("nan"), np.float64("nan"), 7, 1.5, True, {"text": "red"}, [[]]]
NO_TEXTS += [
    np.array(3),
    ["red", None],
    b"\xff",
    SURROGATE,
    [],
    "",
    " \n",
    "\u200b\x01",
]


@pytest.mark.parametrize("value", NO_TEXTS, ids=ascii)
@pytest.mark.parametrize("key", ["prompts", "responses"])
def test_what_is_no_text_is_refused(key, value):
    # A missing answer of a table was trained as the word "None" or "nan".
    records = text_records(**{key: ["hi", value]})
    what = key.removesuffix("s")
    with pytest.raises(ValueError, match=f"Record 'b': its {what} ") as found:
        checked_records(records)
    str(found.value).encode()  # it can be printed


NO_IDS = [None, float("nan"), np.float64("inf"), True, [1], SURROGATE]


@pytest.mark.parametrize("value", NO_IDS, ids=ascii)
def test_what_is_no_id_is_refused(value):
    with pytest.raises(ValueError, match="number 1 of the batch: its id must") as found:
        checked_records(text_records(ids=["a", value]))
    str(found.value).encode()


@pytest.mark.parametrize(
    "texts",
    [
        ["é", "b"],
        (b"\xc3\xa9", "b"),
        np.array(["é", "b"]),
        np.array(["é", "b"], "object"),
        np.array(["é".encode(), b"b"]),
        tf.constant(["é", "b"]),
        [np.str_("é"), np.bytes_(b"b")],
        [tf.constant("é"), np.array(b"b")],
        np.array([["é"], ["b"]]),
    ],
    ids=lambda texts: type(texts).__name__,
)
def test_texts_in_every_container(texts):
    records = checked_records({"prompts": texts, "responses": texts, "ids": texts})
    assert records["prompts"] == records["responses"] == [["é"], ["b"]]
    assert records["ids"] == ["é", "b"]
    assert {type(t) for turns in records["prompts"] for t in turns} == {str}


@pytest.mark.parametrize("ids", [[7, 8], np.array([7, 8]), range(7, 9), tf.range(7, 9)])
def test_numbers_are_ids(ids):
    assert checked_records(text_records(ids=ids))["ids"] == ["7", "8"]


def test_a_turn_that_is_no_text_is_named():
    records = text_records(prompts=["hi", ["hi", None]])
    with pytest.raises(ValueError, match=r"'b': its prompt \(turn 2 of 2\) must"):
        checked_records(records)


def test_an_image_needs_no_question_and_nothing_else_may_be_empty(preprocessor):
    image = random_image(0)
    caption = {"prompts": ["<image>"], "responses": ["red"], "images": [[image]]}
    assert preprocessor(caption)[2].sum() == 2
    with pytest.raises(ValueError, match="its prompt is empty"):
        checked_records({"prompts": [["<image>", ""]], "images": [image]})
    blind = DistillationPreprocessor(
        preprocessor.teacher_preprocessor, tiny_gemma_text().preprocessor, 8, True
    )
    with pytest.raises(ValueError, match="number 0 of the batch: its prompt is empty"):
        blind(caption)


def test_an_answer_that_the_tokenizer_drops_is_refused():
    # Only the end mark was trained: the student learned to answer nothing. The bytes
    # of this letter are not in the vocabulary.
    preprocessor = FAMILIES["Qwen3_5"]().preprocessor
    pair = DistillationPreprocessor(preprocessor, preprocessor, 8)
    with pytest.raises(ValueError, match="Record 'b': its response has no token"):
        pair(text_records(responses=["red", "é"]))


# --- Keys ---


@pytest.mark.parametrize(
    "key, nearest",
    [
        ("image", "images"),
        ("imgs", "images"),
        ("Images", "images"),
        ("pictures", "images"),
        ("prompt", "prompts"),
        ("questions", "prompts"),
        ("answers", "responses"),
        ("labels", "responses"),
        ("reponses", "responses"),
        ("id", "ids"),
        ("sample_weights", "sample_weight"),
        ("weights", "sample_weight"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(key, nearest):
    # `image=` trained without vision, `sample_weights=` had no effect.
    message = f"no key '{key}'; did you mean '{nearest}'"
    with pytest.raises(ValueError, match=message):
        checked_records({**text_records(), key: [1, 2]})


def test_keys_that_are_near_to_none():
    with pytest.raises(ValueError, match="no key 'zzz'. It would have no effect"):
        checked_records({**text_records(), "zzz": [1, 2]})
    with pytest.raises(ValueError, match="Batches have no key 'teach'.*'teacher'"):
        expect_known_keys(["student", "teach"], ("student", "teacher"), "Batches")


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"ids": ["a"]}, "Every prompt needs one id. Received: 2 prompts, 1"),
        ({"sample_weight": [1.0]}, "Every prompt needs one sample_weight"),
        ({"prompts": "hi"}, '"prompts" must be a list.*Received: str'),
        ({"responses": iter("ab")}, '"responses" must be a list'),
        ({"ids": {"a", "b"}}, '"ids" must be a list.*Received: set'),
        ({"prompts": None}, 'need "prompts"'),
    ],
    ids=str,
)
def test_columns_that_do_not_fit(changed, message):
    with pytest.raises(ValueError, match=message):
        checked_records(text_records(**changed))


def test_checked_records_are_not_checked_again():
    records = checked_records(text_records(ids=None))
    assert checked_records(records) is records
    assert records["ids"] is None and records["images"] == [[], []]
    assert copy.copy(records).names == records.names


# --- One check for every way in ---


def distiller():
    model = BetaKDDistiller(tiny_gemma3(), tiny_gemma3(), ForwardKLEnergy())
    model.compile(optimizer="sgd")
    return model


WAYS = {
    "fit": lambda records, _: distiller().fit(records, verbose=0),
    "evaluate": lambda records, _: distiller().evaluate(records, verbose=0),
    "predict": lambda records, _: distiller().predict(records, verbose=0),
    "train_on_batch": lambda records, _: distiller().train_on_batch(records),
    "cache_teacher": lambda records, folder: cache_teacher(
        tiny_gemma3(), records, folder, verbose=0
    ),
    "generate_answers": lambda records, _: generate_answers(
        tiny_gemma3(), records, max_new_tokens=1, progress=False
    ),
    "model_inputs": lambda rows, _: model_inputs(tiny_gemma3().preprocessor, rows),
}


@pytest.mark.parametrize(
    "corrupt, message",
    [
        (lambda r: r["prompts"].__setitem__(1, None), "'q1'.*: its prompt must"),
        (lambda r: r["ids"].__setitem__(1, None), "number 1 of the .*: its id must"),
        (
            lambda r: r["images"].__setitem__(1, [np.full((4, 4, 3), np.nan)]),
            "'q1'.*: The values of an image",
        ),
        (
            lambda r: r["prompts"].__setitem__(1, "<image> <img>"),
            "'q1'.* has the image mark '<img>' in its prompt",
        ),
        (lambda r: r.update(image=r.pop("images")), "did you mean 'images'"),
    ],
    ids=["text", "id", "image", "mark", "key"],
)
@pytest.mark.parametrize("way", WAYS)
def test_every_way_in_checks(way, corrupt, message, tmp_path):
    records = vqa_records(2)
    corrupt(records)
    with pytest.raises(ValueError, match=message):
        WAYS[way](records, tmp_path)


def test_answers_that_become_the_unknown_token_are_named():
    """They were trained as `<unk>` without a word."""
    records = vqa_records(4)
    records["responses"][:2] = ["\u65e5\u672c", "red \u8a9e"]
    model = distiller()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert model.check_records(records, batch_size=1) == 4
        for _ in range(2):
            x, y, weight = model.preprocessor(records)
    unknown = model.student.preprocessor.tokenizer.token_to_id("<unk>")
    assert ((y == unknown) & (weight > 0)).sum(axis=1).tolist() == [1, 1, 0, 0]
    messages = [str(w.message) for w in told if "unknown token" in str(w.message)]
    # One for `check_records`, with all of them, and one for the first batch.
    assert len(messages) == 2
    for message in messages:
        assert "(2 of " in message and "'q0'" in message and "'q1'" in message
        assert "'q2'" not in message
    assert "(2 of 4)" in messages[0]
    assert messages[1].endswith(
        "`distiller.check_records(data)` names all such records."
    )


def test_tokenizers_that_know_every_byte_have_no_unknown_token():
    assert unknown_id(FAMILIES["Qwen3_5"]().preprocessor.tokenizer) is None
    assert unknown_id(tiny_gemma3().preprocessor.tokenizer) == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_refuses_a_missing_answer(family):
    preprocessor = FAMILIES[family]().preprocessor
    records = {"prompts": ["what color"], "responses": [None], "ids": ["q7"]}
    if getattr(preprocessor, "image_converter", None) is not None:
        records["prompts"] = ["<image>\nwhat color"]
        records["images"] = [[random_image(0)]]
    pair = DistillationPreprocessor(preprocessor, preprocessor, 8)
    with pytest.raises(ValueError, match="Record 'q7': its response must be text"):
        pair(records)
    assert pair({**records, "responses": ["red"]})[2].sum() >= 2
