"""Token ids of Qwen2-VL, 2.5-VL and 3-VL against those of their published tokenizer."""

import concurrent.futures
import copy
import json
import pathlib
import pickle

import keras
import keras_hub
import numpy as np
import pytest

from keras_betakd.preprocessing import chat_template
from keras_betakd.preprocessing.chat_tokens import chat_tokens
from keras_betakd.preprocessing.special_tokens import special_tokens
from keras_betakd.qwen_vl import QwenVLTokenizer

FOLDER = pathlib.Path(__file__).parent / "golden" / "qwen_vl"
FILES = FOLDER / "qwen2_5_vl_tiny" / "checkpoint"
PROMPTS = json.loads((FOLDER / "prompts.json").read_text())
TEXTS = [case["text"] for case in PROMPTS["tokenize"]]


def published_added():
    config = json.loads((FILES / "tokenizer_config.json").read_text())
    return [
        (entry["content"], int(number), entry["special"])
        for number, entry in config["added_tokens_decoder"].items()
    ]


def tokenizer(**changes):
    files = {"vocabulary": FILES / "vocab.json", "merges": FILES / "merges.txt"}
    return QwenVLTokenizer(**{**files, "added_tokens": published_added(), **changes})


def ids(made, text):
    return np.asarray(made(text)).tolist()


@pytest.mark.backends
def test_ids_and_texts_are_the_published_ones():
    made = tokenizer()
    assert len(TEXTS) == 29
    for case in PROMPTS["tokenize"]:
        assert ids(made, case["text"]) == case["ids"]
        assert made.detokenize(case["ids"]) == case["decoded"]
        skipped = made.detokenize(np.array(case["ids"], int), skip_special_tokens=True)
        assert skipped == case["decoded_skip_special"]
    expected = [case["ids"] for case in PROMPTS["tokenize"]]
    assert made(TEXTS) == expected
    assert made.detokenize(expected) == [c["decoded"] for c in PROMPTS["tokenize"]]


@pytest.mark.backends
def test_it_returns_what_tokenizers_of_keras_hub_return():
    vocabulary, merges = {"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}, ["a b"]
    theirs = keras_hub.models.QwenTokenizer(vocabulary=vocabulary, merges=merges)
    ours = tokenizer()
    for text in ("ab", ["ab", "a"]):
        expected, found = theirs(text), ours(text)
        assert type(found) is type(expected)
        assert getattr(found, "dtype", None) == getattr(expected, "dtype", None)
    tokens = keras.ops.convert_to_tensor(ours("The house"))
    assert ours.detokenize(tokens) == "The house"
    assert ours.detokenize(tokens[None]) == ["The house"]
    assert ours.detokenize([]) == "" == ours.detokenize([335])


def test_inside_tf_data():
    import tensorflow as tf

    made = tokenizer()
    data = tf.data.Dataset.from_tensor_slices(TEXTS)
    expected = [case["ids"] for case in PROMPTS["tokenize"]]
    assert [x.numpy().tolist() for x in data.map(made)] == expected
    (batch,) = data.batch(len(TEXTS)).map(made)
    assert batch.to_list() == expected
    assert made.detokenize(batch) == [case["decoded"] for case in PROMPTS["tokenize"]]


def test_bytes_that_are_no_text_are_replaced():
    made = tokenizer()
    first, *rest = ids(made, "é")
    assert rest
    assert made.detokenize([first, *ids(made, "a")]) == "\ufffda"


def test_special_tokens_have_names():
    made = tokenizer()
    for name, text in (
        ("end_token", "<|im_end|>"),
        ("end_token2", "<|endoftext|>"),
        ("pad_token", "<|endoftext|>"),
        ("im_start_token", "<|im_start|>"),
        ("vision_start_token", "<|vision_start|>"),
        ("vision_end_token", "<|vision_end|>"),
        ("image_token", "<|image_pad|>"),
        ("video_token", "<|video_pad|>"),
    ):
        assert getattr(made, name) == text
        assert getattr(made, f"{name}_id") == made.token_to_id(text)
        assert made.id_to_token(made.token_to_id(text)) == text
    assert made.start_token is None and made.start_token_id is None
    assert made.vocabulary_size() == 334 == len(made.get_vocabulary())
    assert made.get_vocabulary()[324] == "<|image_pad|>"
    assert made.special_token_ids == list(range(312, 326))
    assert "<tool_call>" not in made.special_tokens
    for call, value in ((made.token_to_id, "<no>"), (made.id_to_token, 334)):
        with pytest.raises(ValueError):
            call(value)
    found = special_tokens(made, lambda text: ids(made, text))
    assert {"<|image_pad|>", "<|vision_start|>"} <= set(found.images)
    assert set(found.ends) == {"<|im_end|>", "<|endoftext|>"}


def test_saved_files_make_an_equal_tokenizer(tmp_path):
    made = tokenizer()
    made.save_to_preset(str(tmp_path))
    config = json.loads((tmp_path / "tokenizer.json").read_text())
    loaded = keras.saving.deserialize_keras_object(config)
    with pytest.raises(ValueError, match="has no vocabulary yet"):
        loaded("a")
    loaded.load_preset_assets(str(tmp_path))
    copies = [loaded, copy.deepcopy(made), pickle.loads(pickle.dumps(made))]
    for other in copies:
        assert other(TEXTS) == made(TEXTS)
        assert list(other.added_tokens) == list(made.added_tokens)
        assert dict(other.vocabulary) == dict(made.vocabulary)
        assert list(other.merges) == list(made.merges)
        assert other.end_token2_id == 312


def test_threads_share_a_tokenizer():
    made = tokenizer()
    expected = [case["ids"] for case in PROMPTS["tokenize"]]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(found == expected for found in pool.map(made, [TEXTS] * 20))


def test_added_tokens_may_stand_in_the_vocabulary():
    vocabulary = json.loads((FILES / "vocab.json").read_text())
    vocabulary |= {text: number for text, number, _ in published_added()}
    pairs = [tuple(merge.split(" ")) for merge in tokenizer().merges]
    made = tokenizer(vocabulary=vocabulary, merges=pairs, added_tokens=None)
    assert list(made.added_tokens) == list(tokenizer().added_tokens)
    assert made(TEXTS) == tokenizer()(TEXTS)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"added_tokens": None}, "pass `added_tokens`, the entries of"),
        ({"added_tokens": [("<|im_end|>", 500, True)]}, "'<|im_end|>' would get"),
        ({"added_tokens": [("<|im_end|>", "312", True)]}, "list of .text, id, is_sp"),
        ({"vocabulary": {"a": "b"}}, "a dict of tokens to whole numbers"),
        ({"vocabulary": {"a": 0, "b": 2}, "merges": []}, "each for one token"),
        ({"merges": ["a b c"]}, "Received: 'a b c'"),
        ({"merges": ["q 9"]}, "Received: 'q 9'"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        tokenizer(**changes)


@pytest.mark.parametrize("value", [3, [3], None, [None], {"a": "b"}])
def test_only_texts_are_tokenized(value):
    with pytest.raises(ValueError, match="must be a string or a list of strings"):
        tokenizer()(value)


@pytest.mark.parametrize("chat", PROMPTS["chat"], ids=lambda chat: chat["name"])
def test_chats_are_the_published_ones(chat):
    """Texts and ids, with one image token for each image."""
    prompts = [prompt for prompt, _ in chat["turns"]]
    answers = [answer for _, answer in chat["turns"]]
    template, made = chat_template("qwen2.5_vl"), tokenizer()
    full = template.render(prompts, answers, chat["system"])
    assert template.render(prompts, answers[:-1], chat["system"]) == chat["prompt_text"]
    assert full == chat["full_text"]
    image = made.image_token_id

    def without_repeats(tokens):
        end = made.vision_end_token_id
        pairs = zip(tokens, [*tokens[1:], None], strict=True)
        return [token for token, after in pairs if token != image or after == end]

    expected = without_repeats(chat["full_ids"])
    assert ids(made, full) == expected
    written = template.chat(prompts, answers, chat["system"])
    marked = [
        (text.replace("<image>", template.image), trained)
        for text, trained in written.segments
    ]
    object.__setattr__(written, "segments", tuple(marked))
    found = chat_tokens(written, made)
    if not chat["prompt_is_prefix"]:
        # The answer is tokenized as the model writes it: after its prompt.
        assert made.detokenize(found.ids) == full.removesuffix("\n")
        return
    assert found.ids == expected[:-1]
    labels = chat["labels_answer_and_end"]
    assert sum(found.trained) == sum(label != -100 for label in labels)


def test_qwen3_vl_has_no_system_prompt_of_its_own():
    for chat in PROMPTS["chat"]:
        prompts = [prompt for prompt, _ in chat["turns"]]
        answers = [answer for _, answer in chat["turns"]]
        text = chat_template("qwen3_vl").render(prompts, answers, chat["system"])
        default = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        assert text == chat["full_text"].removeprefix(default)
