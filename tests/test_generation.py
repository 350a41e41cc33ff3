"""Greedy generation: no answer depends on its batch, and the model stays as it was."""

import keras
import keras_hub
import numpy as np
import pytest
from scienceqa_folder import write_folder
from tiny_families import FAMILIES, tiny_text
from tiny_models import random_image, tiny_gemma3, tiny_gemma_text, tiny_pali_gemma

from keras_betakd.data import ScienceQADataset, load_scienceqa, load_vqa
from keras_betakd.data.batches import Records
from keras_betakd.evaluation import clean_answer, decoding, generate_answers
from keras_betakd.evaluation.answer_text import without_marks
from keras_betakd.evaluation.prompts import PromptReader
from keras_betakd.models.answer_function import greedy_function
from keras_betakd.models.chat_generation import generated
from keras_betakd.models.hooks import recorded
from keras_betakd.models.sampler import GreedyAnswerSampler
from keras_betakd.preprocessing import format_of, model_inputs
from keras_betakd.preprocessing import prompts as grouping
from keras_betakd.preprocessing.prompts import by_length, stacked_inputs
from keras_betakd.preprocessing.text_format import cut

WORDS = "one two three four five six seven eight nine ten".split()


def random_weights(model):
    """Weights large enough for answers that depend on the whole prompt."""
    rng = np.random.default_rng(0)
    for weight in model.backbone.weights:
        if weight.dtype == "float32":
            weight.assign(rng.normal(0, 0.4, weight.shape))
    return model


def deep_pali_gemma():
    """Three layers: with one, the cache is independent of a token's context."""
    model = tiny_pali_gemma(width=16)
    config = {**model.backbone.get_config(), "num_layers": 3}
    return keras_hub.models.PaliGemmaCausalLM(
        backbone=keras_hub.models.PaliGemmaBackbone.from_config(config),
        preprocessor=model.preprocessor,
    )


@pytest.fixture(scope="module")
def text_model():
    """One model for tests that do not change it, so that JAX compiles it once."""
    model = random_weights(tiny_gemma_text(width=16))
    model.compile(sampler="greedy")
    return model


MODELS = {
    "gemma3": lambda: tiny_gemma3(width=16, num_layers=2),
    "pali_gemma": deep_pali_gemma,
    "text": lambda: tiny_gemma_text(width=16),
}


def batches(name, size=5, batch_size=2):
    """Prompts of five lengths; for Gemma 3, with and without an image."""
    rows = []
    for i in range(size):
        has_image = name == "pali_gemma" or (name == "gemma3" and i % 2 == 0)
        mark = "<image>\n" if has_image else ""
        images = [random_image(i, height=9 + i, width=20 - i)] if has_image else []
        rows.append((f"q{i}", mark + " ".join(WORDS[: 2 * i + 1]), images))
    for start in range(0, size, batch_size):
        ids, prompts, images = zip(*rows[start : start + batch_size], strict=True)
        yield {
            "ids": np.array(ids),
            "prompts": np.array(prompts),
            "images": list(images),
        }


@pytest.mark.parametrize("name", MODELS)
def test_answers_do_not_depend_on_the_batch_size(name):
    # Reported bug: accuracy changed with the evaluation batch size. In keras-hub,
    # PaliGemma's answers do when the prompts of a batch differ in length, and a
    # limit on the new tokens is one for the longest prompt of the batch.
    model = random_weights(MODELS[name]())
    options = {"max_new_tokens": 6, "max_length": 36, "progress": False}
    alone = generate_answers(model, batches(name), batch_size=1, **options)
    assert list(alone) == ["q0", "q1", "q2", "q3", "q4"]
    assert len(set(alone.values())) > 1, "the weights say the same to everything"
    assert generate_answers(model, batches(name), **options) == alone
    # Not four: keras-hub's Gemma 3 misplaces the images on TensorFlow when as many
    # prompts as image tokens come together, because `keras.ops.add` of a (4, 4) and
    # a (4, 1) tensor takes the column for a row there. A real model has 256.
    together = batches(name, batch_size=5)
    assert generate_answers(model, together, batch_size=3, **options) == alone


def test_prompts_of_many_lengths_do_not_all_wait(monkeypatch):
    # They hold their images; unbounded, those of a whole benchmark were in memory.
    model = random_weights(MODELS["pali_gemma"]())
    options = {"batch_size": 2, "max_new_tokens": 6}
    expected = generate_answers(model, batches("pali_gemma"), progress=False, **options)
    monkeypatch.setattr(grouping, "_MOST_WAITING", 1)
    reader = PromptReader(model.preprocessor)
    groups = decoding.answered_groups(
        model, reader.read(batches("pali_gemma")), **options
    )
    first = next(groups)
    assert [prompt.id for prompt, _ in first] == ["q0"]
    assert list(reader.ids) == ["q0", "q1"]
    answers = {prompt.id: text for group in (first, *groups) for prompt, text in group}
    assert answers == expected


def test_greedy_whatever_the_sampler_and_the_model_unchanged(text_model):
    # Reported bug: keras-hub draws at random by default, so that scores changed
    # from run to run.
    model = random_weights(tiny_gemma_text(width=16))
    model.compile(sampler="random")
    model.make_generate_function()
    sampler, function = model.sampler, model.generate_function
    first = generate_answers(model, batches("text", 2), progress=False)
    assert model.sampler is sampler
    assert model.generate_function is function
    prompts = next(batches("text"))["prompts"].tolist()
    expected = text_model.generate(prompts, strip_prompt=True)
    assert [first["q0"], first["q1"]] == [clean_answer(text) for text in expected]


def test_a_model_keeps_what_was_compiled_for_its_greedy_answers():
    """Each call compiled it anew, unless the model's own sampler was greedy."""
    model = random_weights(tiny_gemma_text(width=16))
    model.compile(sampler="random")

    def function_after(**options):
        generate_answers(model, batches("text", 2), progress=False, **options)
        return greedy_function(model)._function

    first = function_after(max_new_tokens=2)
    assert first is not None
    assert function_after(max_new_tokens=3) is first
    assert model.generate_function is None
    # On JAX, it is given the values of trainable variables and of the others.
    model.backbone.token_embedding.trainable = False
    frozen = function_after(max_new_tokens=3)
    assert frozen is not first
    model.compile(sampler="random")  # as keras-hub asks for
    assert function_after(max_new_tokens=3) is not frozen


def next_by(table, calls):
    """A `next` for samplers: in row i, the token at `index` is table[i][index]."""
    classes = 1 + max(map(max, table))

    def next(prompt, cache, index):
        calls.append(index)
        found = keras.ops.take(keras.ops.convert_to_tensor(table), index, axis=1)
        return keras.ops.one_hot(found, classes), None, cache

    return next


@pytest.mark.backends
@pytest.mark.parametrize("limit", [3, None])
@pytest.mark.parametrize("in_numbers", [False, True])
def test_each_row_ends_by_its_own_end_token_or_limit(limit, in_numbers):
    """The loop went on to the sequences' length, and took padding for an end token."""
    # End tokens are 1 and 0, which pads. Prompts of 1, 2 and 4 tokens.
    prompt = np.array([[5] + [0] * 9, [5, 1] + [0] * 8, [5, 5, 0, 5] + [0] * 6])
    mask = np.arange(10) < np.array([[1], [2], [4]])
    table = [
        [9, 6, 7, 1, 8, 8, 8, 8, 8, 8],  # ends after 3, also without limit
        [9, 9, 6, 0, 8, 8, 8, 8, 8, 8],
        [9, 9, 9, 9, 6, 6, 6, 6, 1, 8],  # ends at its limit, or after 5
    ]
    sampler = GreedyAnswerSampler()
    sampler.set_limit(limit)
    sampler.counts_in_numbers = in_numbers
    calls = []
    found = sampler(
        next_by(table, calls),
        keras.ops.convert_to_tensor(prompt),
        index=keras.ops.convert_to_tensor(1),
        mask=keras.ops.convert_to_tensor(mask),
        stop_token_ids=(1, 0),
    )
    last = 9 if limit is None else 7
    expected = np.where(mask, prompt, table)
    expected[:, last:] = 0
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(found), expected)
    if keras.backend.backend() == "torch":
        assert len(calls) == last - 1


@pytest.mark.parametrize("pads_with_end", [False, True])
def test_answers_are_those_of_the_model_itself(pads_with_end):
    """A family whose padding ends answers, as this GPT-2, answered nothing at all."""
    model = tiny_text("GPT2") if pads_with_end else tiny_gemma_text(width=16)
    model, tokenizer = random_weights(model), model.preprocessor.tokenizer
    assert (tokenizer.pad_token_id == tokenizer.end_token_id) == pads_with_end
    expected = {}
    for prompt in PromptReader(model.preprocessor).read(batches("text")):
        packed = format_of(model.preprocessor).step_inputs(
            stacked_inputs([prompt]), prompt.length
        )
        ids = packed["token_ids"].tolist()[0]
        for _ in range(6):
            x = {"token_ids": [ids], "padding_mask": [[1] * len(ids)]}
            x = {name: np.array(value) for name, value in x.items()}
            ids.append(int(keras.ops.argmax(model(x)[0, -1])))
        expected[prompt.id] = without_marks(tokenizer.detokenize(ids[-6:]))
    assert len(set(expected.values())) > 1
    found = generate_answers(
        model, batches("text"), batch_size=3, max_new_tokens=6, progress=False
    )
    assert found == expected


KEPT = ("Gemma3", "PaliGemma", "SmolLM3", "Qwen2_5VL")


@pytest.mark.parametrize("name", KEPT)
def test_answers_are_those_of_keras_hub_alone(name):
    """Of its own loop and sampler, one prompt at a time; and no head on the prompt."""
    model = random_weights(FAMILIES[name]())
    model.compile(sampler="greedy")
    kind = "text" if name == "SmolLM3" else "pali_gemma"
    expected = {}
    for prompt in PromptReader(model.preprocessor).read(batches(kind)):
        found = generated(
            model, stacked_inputs([prompt]), prompt.length + 6, strip_prompt=True
        )
        expected[prompt.id] = without_marks(found[0])
    assert len(set(expected.values())) > 1
    with recorded(model.backbone.token_embedding) as (calls,):
        found = generate_answers(
            model, batches(kind), batch_size=3, max_new_tokens=6, progress=False
        )
    assert found == expected
    if keras.backend.backend() == "torch":
        heads = [output for _, kwargs, output in calls if kwargs.get("reverse")]
        assert {output.shape[1] for output in heads} == {1}


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="steps are not traced")
def test_no_more_steps_than_the_longest_answer(monkeypatch):
    """Where none ended, answers were decoded to a length that is a multiple of 64."""
    model = random_weights(tiny_gemma_text(width=16))
    steps = []
    compute = model.call_with_cache

    def counted(token_ids, *args, **kwargs):
        steps.append(tuple(token_ids.shape))
        return compute(token_ids, *args, **kwargs)

    monkeypatch.setattr(model, "call_with_cache", counted)
    words = [1, 9, 1, 9, 1]
    batch = {"prompts": [" ".join(WORDS[:n]) for n in words]}
    generate_answers(model, batch, batch_size=3, max_new_tokens=5, progress=False)
    lengths = [p.length for p in PromptReader(model.preprocessor).read(batch)]
    # The two long prompts and a short one, then two short ones, not filled up to three.
    spread = max(lengths) - min(lengths)
    assert 10 < len([s for s in steps if s[1] == 1]) <= spread + 5 + 5
    assert [s for s in steps if s[1] > 1] == [
        (3, max(lengths) + 5),
        (2, min(lengths) + 5),
    ]


def test_model_is_given_back_after_an_error():
    model = tiny_gemma_text()
    model.compile(sampler="random")
    sampler = model.sampler
    with pytest.raises(ValueError, match="Record 'q1'"):
        generate_answers(model, batches("text"), max_length=4, progress=False)
    assert model.sampler is sampler
    assert model.generate_function is None


@pytest.mark.parametrize("name", MODELS)
def test_prompt_that_would_be_cut_is_named(name):
    # keras-hub's packers cut the prompt, image tokens included, without a word.
    model = MODELS[name]()
    longest = " ".join(WORDS * 30)
    batch = next(batches(name, 1))
    batch["prompts"] = np.array([str(batch["prompts"][0]) + longest])
    limit = model.preprocessor.sequence_length
    message = rf"Record 'q0': its prompt has \d{{3}} tokens.*but {limit} are"
    with pytest.raises(ValueError, match=message):
        generate_answers(model, batch, progress=False)


def test_limits_on_length_are_exact(text_model):
    prompt = "one two three"
    tokens = len(text_model.preprocessor.tokenizer(prompt)) + 1  # And the start.
    room = text_model.preprocessor.sequence_length - tokens
    batch = {"prompts": [prompt] * 2}
    generate_answers(text_model, batch, max_new_tokens=room, progress=False)
    message = f"has {tokens} tokens.*room for {room + 1}"
    with pytest.raises(ValueError, match=message):
        generate_answers(text_model, batch, max_new_tokens=room + 1, progress=False)


def forced(model, pieces):
    """Makes a text model generate the pieces in turn, for any prompt."""
    tokenizer = model.preprocessor.tokenizer
    ids = [tokenizer.token_to_id(piece) for piece in pieces]
    generate_step = model.generate_step

    def step(inputs, stop_token_ids=None):
        outputs = generate_step(inputs, stop_token_ids)
        start = keras.ops.sum(keras.ops.cast(inputs["padding_mask"], "int32"), -1)
        tokens = outputs["token_ids"]
        places = keras.ops.arange(tokens.shape[-1])[None] - start[:, None]
        for place, token in enumerate(ids):
            tokens = keras.ops.where(places == place, token, tokens)
        outputs["token_ids"] = keras.ops.where(places >= len(ids), 0, tokens)
        outputs["padding_mask"] = places < len(ids)
        return outputs

    model.generate_step = step
    return model


def test_end_marks_and_the_prompt_are_removed():
    # Reported bug: "2011<|im_end|>" against "2011" scored nothing; elsewhere, the
    # prompt was echoed in front of the answer.
    words = ["\u2581yes", "<end_of_turn>", "\u2581no"]
    model = forced(tiny_gemma_text(), words)
    answers = generate_answers(model, {"prompts": ["one", "one two"]}, progress=False)
    assert answers == {"0": "yes", "1": "yes"}


def test_dataset_of_questions_with_and_without_images(tmp_path):
    # Reported bug: a batch of text alone crashed a model with vision.
    records = load_scienceqa(
        write_folder(tmp_path, num=6, split_sizes={"val": 6}), "val"
    )
    dataset = ScienceQADataset(records, batch_size=2, shuffle=True)
    model = tiny_gemma3(sequence_length=160)
    answers = generate_answers(model, dataset, max_new_tokens=2, progress=False)
    assert sorted(answers) == ["1", "2", "3", "4", "5", "6"]
    # Without images, the same batches give other prompts and still run.
    texts = [r for r in records if r.image is None]
    alone = ScienceQADataset(texts, batch_size=2)
    only = generate_answers(model, alone, max_new_tokens=2, progress=False)
    assert only == {r.id: answers[r.id] for r in texts}


def test_progress_is_shown_only_on_request(text_model, capsys):
    generate_answers(text_model, batches("text", 3), max_new_tokens=1, progress=False)
    assert capsys.readouterr().out == ""
    generate_answers(text_model, batches("text", 3), max_new_tokens=1)
    assert "2/Unknown" in capsys.readouterr().out


def test_wrong_arguments(text_model):
    with pytest.raises(TypeError, match="Sequential"):
        generate_answers(keras.Sequential(), [])
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        generate_answers(text_model, [], max_new_tokens=0)
    with pytest.raises(ValueError, match="'q0'"):
        twice = [*batches("text", 2), *batches("text", 2)]
        generate_answers(text_model, twice, max_new_tokens=1, progress=False)
    assert generate_answers(text_model, [], progress=False) == {}


def test_records_of_a_loader_are_answered():
    """`fit` took them, and here a `TypeError` came out of their first key."""
    records = load_vqa(
        [
            {"question": "which color?", "answer": "red"},
            {"question": "a", "answer": "b"},
        ]
    )
    model = tiny_gemma_text()
    found = generate_answers(model, records, max_new_tokens=2, progress=False)
    batch = {"ids": ["0", "1"], "prompts": ["which color?", "a"]}
    expected = generate_answers(model, batch, max_new_tokens=2, progress=False)
    assert found == expected and list(found) == ["0", "1"]
    with pytest.raises(TypeError, match="ScienceQADataset"):
        generate_answers(model, Records(["a"]), progress=False)


def test_prompts_are_sorted_a_few_batches_at_a_time():
    """Those of a whole benchmark, with their images, are not held in memory."""
    read = []

    def prompts():
        for i in range(20):
            read.append(i)
            yield grouping.Prompt(i, {}, i % 5, 9, None, 2)

    found = by_length(prompts(), 2)
    assert next(found).length == 4
    assert len(read) == 2 * grouping._SORTED_BATCHES
    rest = [prompt.id for prompt in found]
    assert rest[:3] == [3, 2, 7] and sorted(rest) == [i for i in range(20) if i != 4]
    alone = [prompt.id for prompt in by_length(prompts(), 1)]
    assert alone == list(range(20))


def test_groups_are_of_the_first_batchs_size(text_model):
    """The longest prompt may come first, out of a last batch that is smaller."""
    reader = PromptReader(text_model.preprocessor)
    groups = decoding.answered_groups(
        text_model, reader.read(batches("text", 3)), max_new_tokens=1
    )
    assert [len(group) for group in groups] == [2, 1]
    assert list(decoding.answered_groups(text_model, [])) == []


@pytest.mark.parametrize("name", ["Gemma3", "Gemma3n", "Gemma4", "PaliGemma", "Phi3"])
def test_prompts_packed_once_are_those_of_keras_hub(name):
    """To another length, and with images that it did not scale."""
    preprocessor = FAMILIES[name]().preprocessor
    batch = next(batches("text" if name == "Phi3" else "pali_gemma", 3, 3))
    family, inputs = format_of(preprocessor), model_inputs(preprocessor, batch)
    assert family.packs_once(inputs)
    packed, lengths = family.packed_with_lengths(inputs, 90)
    assert lengths == family.prompt_lengths(inputs, 90)["sequence_length"]
    expected = preprocessor.generate_preprocess(
        family.generation(inputs), sequence_length=70
    )
    found = cut(packed, 70)
    assert sorted(found) == sorted(expected)
    for key, value in found.items():
        other = keras.ops.convert_to_numpy(expected[key])
        assert value.dtype == other.dtype
        np.testing.assert_array_equal(value, other)
