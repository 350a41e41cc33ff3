"""Answers given as token ids reach both models as they are."""

import keras
import numpy as np
import pytest
from test_families import K, model_of, records
from tiny_families import FAMILIES
from tiny_models import tiny_gemma3

from keras_betakd import DistillationPreprocessor

DECODERS = [name for name in FAMILIES if name != "BLIP2_FlanT5"]


def preprocessor(name, **options):
    teacher, student = model_of(name, 1, width=16), model_of(name, 0)
    pair = teacher.preprocessor, student.preprocessor
    return DistillationPreprocessor(*pair, K, **options)


def answers_of(batch):
    """The ids of each record's answer, as they are in a batch."""
    _, y, weight = batch
    return [labels[w > 0].tolist() for labels, w in zip(y, weight, strict=True)]


def assert_same(found, expected):
    keras.tree.map_structure(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("name", DECODERS)
def test_ids_of_a_text_give_what_the_text_gives(name):
    """Positions, masks and images of every family's own packing, to the bit."""
    encode = preprocessor(name)
    rows = records(name, (1, 1, 1))
    expected = encode(rows)
    tokens = answers_of(expected)
    assert all(tokens)
    given = {**rows, "response_tokens": tokens}
    assert_same(encode(given), expected)
    some = {**given, "response_tokens": [tokens[0], None, tokens[2]]}
    assert_same(encode(some), expected)
    without_texts = {k: v for k, v in given.items() if k != "responses"}
    assert_same(encode(without_texts), expected)


@pytest.mark.parametrize("name", DECODERS)
def test_ids_that_no_text_has(name):
    """A sampled answer, read back as text, was another one; a cut one got an end."""
    encode = preprocessor(name)
    rows = records(name, (1, 1))
    plain = encode(rows)
    tokenizer = encode.student_preprocessor.tokenizer
    end = tokenizer.end_token_id
    answers = [[end - 1, 7, 7, end - 1, 7], [end]]
    x, y, weight = encode({**rows, "response_tokens": answers})
    assert answers_of((x, y, weight)) == answers
    for role in ("student", "teacher"):
        inputs, places = x[role], x[f"{role}_positions"]
        for row, answer in enumerate(answers):
            assert places[row, 0] == plain[0][f"{role}_positions"][row, 0]
            start = places[row, 0] + 1
            ids = inputs["token_ids"][row]
            assert ids[start : start + len(answer)].tolist() == answer
            mask = inputs["padding_mask"][row]
            assert mask[: start + len(answer)].all()
            assert not mask[start + len(answer) :].any()
            before = plain[0][role]["token_ids"][row, :start]
            np.testing.assert_array_equal(ids[:start], before)


def test_of_a_conversation_the_last_answer_is_given():
    encode = preprocessor("MobileVLM")
    rows = {
        "prompts": [["<image>\nwhat?", "and then?"]],
        "responses": [["red", "yes"]],
        "images": [np.zeros((16, 16, 3), "uint8")],
    }
    both = encode(rows)
    size = int((both[2] > 0).sum())
    gap = np.flatnonzero(np.diff(both[0]["student_positions"][0, :size]) > 1)
    tokens = answers_of(both)[0][gap[0] + 1 :]
    for responses in (["red", "yes"], ["red"], ["red", None]):
        given = {**rows, "responses": [responses], "response_tokens": [tokens]}
        x, y, weight = encode(given)
        assert answers_of((x, y, weight)) == [tokens]
        np.testing.assert_array_equal(
            x["student"]["token_ids"], both[0]["student"]["token_ids"]
        )


@pytest.mark.parametrize(
    "tokens, message",
    [
        ([[1], []], "'q1': its entry of \"response_tokens\" must be the token ids"),
        ([[1], "red"], "'q1': its entry of \"response_tokens\" must be the token ids"),
        ([[1], [0.5]], "'q1': its entry of \"response_tokens\" must be the token ids"),
        ([[1]], "Every prompt needs one entry, of token ids or `None`"),
        ([[1], [3] * (K + 1)], "'q1' has 9 tokens.*max_response_length=8"),
    ],
)
def test_wrong_tokens_are_refused(tokens, message):
    encode = preprocessor("Gemma3")
    with pytest.raises(ValueError, match=message):
        encode({**records("Gemma3"), "response_tokens": tokens})


def test_what_does_not_fit_and_encoders_are_refused():
    models = tiny_gemma3(width=16), tiny_gemma3()
    encode = DistillationPreprocessor(*(m.preprocessor for m in models), 64)
    rows = records("Gemma3")
    needed = int(encode(rows)[0]["student_positions"][1, 0]) + 60
    for model in models:
        model.preprocessor.sequence_length = needed - 1
    with pytest.raises(ValueError, match=f"'q1' needs a sequence_length of {needed}"):
        encode({**rows, "response_tokens": [None, [3] * 60]})
    with pytest.raises(ValueError, match="has an encoder for its prompts"):
        preprocessor("BLIP2_FlanT5")(
            {**records("BLIP2_FlanT5"), "response_tokens": [None, [3]]}
        )
