"""Texts of byte-pair families are split as published, trained and asked alike."""

import dataclasses
import inspect
import itertools
import json
import pathlib
import warnings

import keras_hub
import numpy as np
import pytest
import tiny_families
from tiny_models import random_image

from keras_betakd import (
    BetaKDDistiller,
    CosineProbsEnergy,
    DistillationPreprocessor,
    TaskBeta,
    fingerprints,
)
from keras_betakd.evaluation import generate_answers
from keras_betakd.preprocessing import byte_pairs, format_of, model_inputs
from keras_betakd.preprocessing.byte_pairs import RULES, encode, encode_all

GOLDEN = json.loads(
    (pathlib.Path(__file__).parent / "golden/byte_pairs/texts.json").read_text()
)
TEXTS, IDS = GOLDEN["texts"], GOLDEN["ids"]
# Whose golden numbers a class of keras-hub must give.
PUBLISHED = {
    **dict.fromkeys(["BLIP2OPTTokenizer", "FalconTokenizer"], "gpt2"),
    **dict.fromkeys(["GPT2Tokenizer", "OPTTokenizer"], "gpt2"),
    "BloomTokenizer": "bloom",
    "GPTNeoXTokenizer": "gpt_neox",
    "GptOssTokenizer": "gpt_oss",
    **dict.fromkeys(["Llama3Tokenizer", "SmolLM3Tokenizer"], "llama3"),
    **dict.fromkeys(["QwenTokenizer", "QwenMoeTokenizer"], "qwen2"),
    **dict.fromkeys(["Qwen3Tokenizer", "Qwen3MoeTokenizer"], "qwen2"),
    **dict.fromkeys(["Qwen3_5Tokenizer", "Qwen3_5MoeTokenizer"], "qwen3_5"),
}
# What classes want in a vocabulary; those of the golden one that it holds stay there.
SPECIAL = {
    "BLIP2OPTTokenizer": ["<image>"],
    "Llama3Tokenizer": (
        "<|begin_of_text|> <|end_of_text|> <|eot_id|> <|start_header_id|> "
        "<|end_header_id|>"
    ).split(),
    "SmolLM3Tokenizer": ["<|begin_of_text|>", "<|end_of_text|>"],
}
# Longer than a merge of keras-hub's, and shorter: the ids differ in all families.
PROMPT = "x=1234\n    if  x == 20:\n\n  the 99  red"
ANSWER = "12345  x\n\n  red"
ASKED = ["GPT2", "Llama3", "Qwen", "Qwen3", "SmolLM3"]


def files(special=()):
    """Vocabulary and merges: spaces, line breaks and digits are merged with words."""
    vocabulary = [*GOLDEN["vocabulary"]]
    vocabulary += [text for text in special if text not in vocabulary]
    return {text: i for i, text in enumerate(vocabulary)}, list(GOLDEN["merges"])


def made(name, cls=None, **kwargs):
    vocabulary, merges = files(SPECIAL.get(name, ()))
    cls = cls or getattr(keras_hub.tokenizers, name)
    if PUBLISHED.get(name) == "qwen3_5":
        kwargs["has_vision_tokens"] = False
    else:
        kwargs.setdefault("unsplittable_tokens", ["<|endoftext|>"])
    return cls(vocabulary=vocabulary, merges=merges, **kwargs)


def model_of(name, monkeypatch):
    """A tiny model whose tokenizer has the golden vocabulary."""
    with monkeypatch.context() as patched:
        patched.setattr(tiny_families, "byte_pairs", lambda special: files(special))
        model = tiny_families.FAMILIES[name]()
    rng = np.random.default_rng(0)
    for weight in model.backbone.weights:
        if weight.dtype == "float32":
            weight.assign(rng.normal(0, 0.4, weight.shape))
    model.compile(sampler="greedy")
    return model


@pytest.mark.parametrize("name", PUBLISHED)
def test_ids_are_the_published_ones(name):
    tokenizer, expected = made(name), IDS[PUBLISHED[name]]
    assert len(TEXTS) == 52
    for text, ids in zip(TEXTS, expected, strict=True):
        assert encode(tokenizer, text) == ids, text
    assert encode_all(tokenizer, TEXTS) == expected


def test_a_space_is_put_before_a_text_once():
    tokenizer = made("GPT2Tokenizer", add_prefix_space=True)
    assert encode_all(tokenizer, TEXTS) == IDS["gpt2_prefix_space"]


def test_the_texts_tell_the_rules_apart():
    for one, other in itertools.combinations(IDS, 2):
        assert IDS[one] != IDS[other]
    for name, rule in vars(byte_pairs).items():
        if isinstance(rule, byte_pairs.BytePairRule) and rule.whole_pieces:
            merged = dataclasses.replace(rule, whole_pieces=False)
            encoder = byte_pairs.byte_level_bpe(*files(), merged)
            assert encoder.encode("Zebra").ids != [files()[0]["Zebra"]], name


def test_every_byte_pair_tokenizer_of_a_causal_lm_has_a_rule():
    """A family that keras-hub adds would be tokenized by keras-hub, with a warning."""
    models = [m for m in vars(keras_hub.models).values() if inspect.isclass(m)]
    general, other = keras_hub.models.CausalLM, keras_hub.models.Seq2SeqLM
    models = [m for m in models if issubclass(m, general) and not issubclass(m, other)]
    classes = {getattr(m.preprocessor_cls, "tokenizer_cls", object) for m in models}
    general = keras_hub.tokenizers.BytePairTokenizer
    names = {c.__name__ for c in classes if issubclass(c, general)}
    assert len(names) == 14
    assert names <= set(RULES)
    # Models of BLIP-2 and Mistral have one of two tokenizers.
    assert set(PUBLISHED) | {"MistralTekkenTokenizer"} == set(RULES)
    assert set(RULES) - names == {"BLIP2OPTTokenizer", "MistralTekkenTokenizer"}


@pytest.mark.parametrize("name", ASKED)
def test_fit_trains_on_the_published_ids(name, monkeypatch):
    models = [model_of(name, monkeypatch) for _ in range(2)]
    records = {"prompts": [PROMPT, "red"], "responses": [ANSWER, "the"]}
    preprocessors = [model.preprocessor for model in models]
    x, y, weight = DistillationPreprocessor(*preprocessors, 16)(records)
    tokenizer = preprocessors[1].tokenizer
    hub = np.asarray(tokenizer(PROMPT)).tolist()
    assert hub != encode(tokenizer, PROMPT)
    start, end = tokenizer.start_token_id, tokenizer.end_token_id
    prompt = ([] if start is None else [start]) + encode(tokenizer, PROMPT)
    answer = [*encode(tokenizer, ANSWER), end]
    row = np.asarray(x["student"]["token_ids"])[0].tolist()
    assert row[: len(prompt) + len(answer)] == prompt + answer
    labels, weight = np.asarray(y)[0], np.asarray(weight)[0]
    assert labels[weight > 0].tolist() == answer
    distiller = BetaKDDistiller(
        *models, CosineProbsEnergy(), TaskBeta(), max_response_length=16
    )
    distiller.compile(optimizer="sgd")
    history = distiller.fit(records, verbose=0).history
    assert np.isfinite(history["loss"]).all()


def asked(model, monkeypatch):
    """The prompts, as ids, that `model.generate` is given from now on."""
    found, generate = [], model.generate

    def spy(inputs, **options):
        ids, mask = (np.asarray(inputs[k]) for k in ("token_ids", "padding_mask"))
        found.extend(row[keep].tolist() for row, keep in zip(ids, mask, strict=True))
        return generate(inputs, **options)

    monkeypatch.setattr(model, "generate", spy)
    return found


@pytest.mark.parametrize("name", [*ASKED, "BLIP2_OPT"])
def test_a_student_is_asked_what_it_was_trained_on(name, monkeypatch):
    models = [model_of(name, monkeypatch) for _ in range(2)]
    student = models[1]
    records = {"prompts": [PROMPT, "the red"]}
    if name == "BLIP2_OPT":
        records["images"] = [random_image(0), random_image(1)]
    distiller = BetaKDDistiller(*models, CosineProbsEnergy(), TaskBeta())
    batch = distiller.preprocessor({**records, "responses": ["12345  x", "the"]})[0]
    rows = np.asarray(batch["student"]["token_ids"]).tolist()
    found = asked(student, monkeypatch)
    answers = distiller.generate(records, max_length=64, strip_prompt=True)
    by_id = generate_answers(student, records, max_length=64, progress=False)
    assert found[:2] == found[2:] and len(found) == 4
    for row, prompt, text in zip(rows, found, records["prompts"], strict=False):
        assert row[: len(prompt)] == prompt
        assert prompt[-3:] == encode(student.preprocessor.tokenizer, text)[-3:]
    assert len(by_id) == len(answers) == 2
    assert len(set(answers)) == 2


@pytest.mark.parametrize("name", [*ASKED, "BLIP2_OPT"])
def test_where_keras_hub_tokenizes_alike_it_answers_alike(name, monkeypatch):
    models = [model_of(name, monkeypatch) for _ in range(2)]
    student = models[1]
    distiller = BetaKDDistiller(*models, CosineProbsEnergy(), TaskBeta())
    prompts = ["red", "ing you"]
    for text in prompts:
        ids = encode(student.preprocessor.tokenizer, text)
        assert np.asarray(student.preprocessor.tokenizer(text)).tolist() == ids
    records = {"prompts": prompts}
    if name == "BLIP2_OPT":
        records["images"] = [random_image(0), random_image(1)]
    inputs = model_inputs(student.preprocessor, records)
    inputs = format_of(student.preprocessor).generation(inputs)
    expected = student.generate(inputs, max_length=40)
    assert distiller.generate(records, max_length=40) == expected
    endless = distiller.generate(records, max_length=40, stop_token_ids=None)
    pairs = zip(endless, expected, strict=True)
    assert all(len(longer) >= len(text) for longer, text in pairs)


@pytest.mark.parametrize("name", ["Qwen", "Qwen3", "SmolLM3"])
def test_families_without_a_start_token_get_none(name, monkeypatch):
    """keras-hub's preprocessors are set to add it, and then add nothing."""
    preprocessor = model_of(name, monkeypatch).preprocessor
    family = format_of(preprocessor)
    assert preprocessor.add_start_token
    x, _, _ = family.training({"prompts": ["red"], "responses": ["the"]})
    first = encode(preprocessor.tokenizer, "red")[0]
    assert x["token_ids"][0, 0] == first
    assert family.prompt_lengths({"prompts": ["red"]}, 8) == {
        "sequence_length": [len(encode(preprocessor.tokenizer, "red"))]
    }


class Renamed(keras_hub.tokenizers.Llama3Tokenizer):
    """Changes nothing about tokens."""


def test_a_subclass_takes_the_rule_of_its_class():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer = made("Llama3Tokenizer", Renamed)
        assert encode_all(tokenizer, TEXTS) == IDS["llama3"]


def classes_without_a_rule():
    class OfMyOwn(keras_hub.tokenizers.BytePairTokenizer):
        pass

    class GPT2Tokenizer(keras_hub.tokenizers.BytePairTokenizer):
        """Not keras-hub's, but of its name."""

    class Lower(keras_hub.tokenizers.GPT2Tokenizer):
        def tokenize(self, inputs):
            return super().tokenize(inputs.lower())

    return OfMyOwn, GPT2Tokenizer, Lower


@pytest.mark.parametrize("number", range(3))
def test_a_class_without_a_rule_keeps_its_own_ids_and_is_named_once(number):
    cls = classes_without_a_rule()[number]
    tokenizer = made(cls.__name__, cls)
    own = np.asarray(tokenizer(PROMPT)).tolist()
    with pytest.warns(UserWarning, match=f"How {cls.__name__} splits texts") as seen:
        assert encode(tokenizer, PROMPT) == own
        assert encode(made(cls.__name__, cls), PROMPT) == own
    assert len(seen) == 1
    assert not format_of(model_with(tokenizer)).packs_prompts


def model_with(tokenizer):
    return keras_hub.models.GPT2CausalLMPreprocessor(tokenizer, sequence_length=16)


def test_a_class_that_splits_by_itself_is_left_alone():
    kwargs = {"split_pattern": byte_pairs.GPT_OSS.pieces}
    vocabulary, merges = files()
    tokenizer = keras_hub.tokenizers.MistralTekkenTokenizer(
        vocabulary, merges, **kwargs
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert encode(tokenizer, PROMPT) == np.asarray(tokenizer(PROMPT)).tolist()
    assert encode(tokenizer, "1234") == encode(made("GptOssTokenizer"), "1234")


def test_another_vocabulary_is_seen():
    """keras-hub reads the files of a saved tokenizer after it was made."""
    tokenizer = made("GPT2Tokenizer")
    before = encode(tokenizer, "the")
    vocabulary, merges = files()
    swapped = dict(zip(vocabulary, reversed(vocabulary.values()), strict=True))
    tokenizer.set_vocabulary_and_merges(swapped, merges)
    assert encode(tokenizer, "the") == [len(swapped) - 1 - i for i in before]


def test_what_goes_on_after_a_stop_compares_the_rules(monkeypatch):
    preprocessor = model_with(made("GPT2Tokenizer"))
    before = fingerprints.of_preprocessor(preprocessor)
    monkeypatch.setitem(RULES, "GPT2Tokenizer", byte_pairs.GPT_NEOX)
    assert fingerprints.of_preprocessor(preprocessor) != before
