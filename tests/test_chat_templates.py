"""Chat templates: the published strings, their tokens and weights, who gets which."""

import copy
import dataclasses
import json
import logging
import pathlib
from unittest import mock

import keras
import keras_hub
import numpy as np
import pytest
import tiny_families
from tiny_families import byte_pairs, tiny_mobilevlm
from tiny_families import tiny_text as plain_text
from tiny_models import (
    random_image,
    tiny_gemma3,
    tiny_gemma_text,
    tiny_pali_gemma,
    tokenizer_proto,
    vqa_records,
)

from keras_betakd import (
    BetaKDDistiller,
    CachedTeacher,
    CosineProbsEnergy,
    DistillationPreprocessor,
    cache_teacher,
    evaluate,
)
from keras_betakd.data import neutralize_image_marks
from keras_betakd.evaluation import generate_answers
from keras_betakd.fingerprints import maker_of
from keras_betakd.models import load_model, save_preset
from keras_betakd.preprocessing import chat_template, format_of, model_inputs
from keras_betakd.preprocessing.chat_templates import TEMPLATES, template_of_preset
from keras_betakd.preprocessing.chat_tokens import chat_tokens, end_id
from keras_betakd.preprocessing.model_inputs import (
    training_inputs,
    without_last_answers,
)
from keras_betakd.preprocessing.prompt_templates import (
    remember_template,
    remembered_template,
    template_label,
)
from keras_betakd.preprocessing.record_checks import checked_records

GOLDEN = json.loads(
    (pathlib.Path(__file__).parent / "golden" / "chat_templates.json").read_text()
)
NAMES = [template.name for template in TEMPLATES]
QWEN = ("<|endoftext|>", "<|im_end|>", "<|im_start|>", "<think>", "</think>")


def test_every_template_has_published_strings():
    assert set(NAMES) == set(GOLDEN["templates"])
    assert len(GOLDEN["conversations"]) == 20


@pytest.mark.parametrize("name", NAMES)
def test_templates_write_what_the_published_ones_write(name):
    """20 conversations: several turns, system prompts, images in all places."""
    published = GOLDEN["templates"][name]
    template = chat_template(name)
    for chat, (prompt, tail) in zip(
        GOLDEN["conversations"], published["texts"], strict=True
    ):
        prompts, responses = chat["prompts"], chat["responses"]
        if not published["images"]:
            prompts = [text.replace("<image>", "") for text in prompts]
        system = chat["system"] if published["system"] else None
        assert template.render(prompts, responses[:-1], system) == prompt
        assert template.render(prompts, responses, system) == prompt + tail
        found = template.chat(prompts, responses, system)
        trained = [text for text, is_trained in found.segments if is_trained]
        assert len(trained) == len(responses)
        assert all(text.endswith(template.end) for text in trained)


@pytest.mark.parametrize("name", NAMES)
def test_presets_of_base_models_get_no_template(name):
    """And each template is that of a preset or of a public checkpoint."""
    names = [*keras_hub.models.CausalLM.presets]
    names += ["Qwen1.5-4B-Chat", "Qwen2-7B-Instruct", "Qwen2.5-VL-3B-Instruct"]
    names += ["Qwen3-4B-Instruct-2507", "Qwen3-VL-2B-Instruct"]
    found = [preset for preset in names if template_of_preset(preset) == name]
    assert found
    assert not [preset for preset in found if preset.endswith(("_base", "guard"))]


@pytest.mark.parametrize(
    "preset, name",
    [
        ("gemma3_4b", None),
        ("pali_gemma_3b_mix_224", None),
        ("qwen3_8b_en", "qwen3"),
        ("qwen3_8_27b", "qwen3.8"),
        ("qwen3_5_0.8b_base", None),
        ("llama3.2_guard_1b", None),
        ("hf://Qwen/Qwen2-VL-2B-Instruct", "qwen2.5_vl"),
        ("hf://Qwen/Qwen2.5-VL-72B-Instruct-AWQ", "qwen2.5_vl"),
        ("hf://Qwen/Qwen2-VL-7B", None),
        ("hf://Qwen/Qwen3-VL-8B-Instruct", "qwen3_vl"),
        ("hf://Qwen/Qwen3-VL-8B-Thinking", None),
        ("qwen2_vl_2b_instruct", "qwen2.5_vl"),
        ("qwen2_5_vl_3b_instruct", "qwen2.5_vl"),
        ("qwen3_vl_4b_instruct", "qwen3_vl"),
        ("hf://google/gemma-3-4b-it", "gemma3"),
        ("hf://Qwen/Qwen3-8B-Base", None),
        ("kaggle://keras/gemma3/keras/gemma3_instruct_1b/3", "gemma3"),
        ("mistral_0.3_instruct_7b_en", "mistral0.3"),
    ],
)
def test_the_name_of_a_preset_says_its_template(preset, name):
    assert template_of_preset(preset) == name


def tiny_text(name, special=(), **kwargs):
    """A tiny text family whose tokenizer has the marks of its chat template."""
    model = plain_text(name, **kwargs)
    if special:
        vocabulary, merges = byte_pairs(special)
        tokenizer = type(model.preprocessor.tokenizer)(
            vocabulary=vocabulary, merges=merges
        )
    else:
        symbols = ("[INST]", "[/INST]", "<|user|>", "<|assistant|>", "<|system|>")
        proto = tokenizer_proto(
            symbols=(*symbols, "<|end|>", "<|endoftext|>"),
            start_piece="<s>",
            end_piece="</s>",
        )
        tokenizer = type(model.preprocessor.tokenizer)(proto=proto)
    backbone = type(model.backbone).from_config(
        {
            **model.backbone.get_config(),
            "vocabulary_size": tokenizer.vocabulary_size(),
        }
    )
    preprocessor = type(model.preprocessor)(
        tokenizer, sequence_length=kwargs.get("sequence_length", 160)
    )
    return type(model)(backbone=backbone, preprocessor=preprocessor)


def tiny_qwen3():
    return tiny_text("Qwen3", QWEN)


def turns(size=2):
    return {
        "ids": ["one", "two"][:size],
        "prompts": [["what color?", "and the shape?"], ["is it red?", "sure?"]][:size],
        "responses": [["red", "circle"], ["yes", "no"]][:size],
    }


CASES = {
    "gemma": lambda: tiny_text_gemma(),
    "gemma3": tiny_gemma3,
    "gemma4": lambda: tiny_gemma4_chat(),
    "qwen2.5": lambda: tiny_text("Qwen", QWEN),
    "qwen3": tiny_qwen3,
    "qwen3.5": lambda: tiny_qwen3_5_chat(),
    "llama2": lambda: tiny_text("Llama"),
    "llama3": lambda: tiny_text(
        "Llama3",
        ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")
        + ("<|start_header_id|>", "<|end_header_id|>"),
    ),
    "mistral": lambda: tiny_text("Mistral"),
    "mistral0.3": lambda: tiny_text("Mistral"),
    "phi3": lambda: tiny_text("Phi3"),
    "smollm3": lambda: tiny_text(
        "SmolLM3", ("<|begin_of_text|>", "<|end_of_text|>", *QWEN[1:]), **LONG
    ),
}
LONG = {"sequence_length": 400}


def tiny_text_gemma():
    return tiny_gemma_text(sequence_length=96)


def tiny_gemma4_chat():
    pieces = (*tiny_families.GEMMA4_PIECES, "<|turn>")
    with mock.patch.object(tiny_families, "GEMMA4_PIECES", pieces):
        return tiny_families.tiny_gemma4(sequence_length=128)


def tiny_qwen3_5_chat():
    pieces = (*tiny_families.QWEN_PIECES, "<think>", "</think>")
    with mock.patch.object(tiny_families, "QWEN_PIECES", pieces):
        return tiny_families.tiny_qwen3_5(sequence_length=256)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return chat_template(request.param), CASES[request.param]().preprocessor


def encoded(preprocessor, template, records, trained_turns="all"):
    inputs = model_inputs(preprocessor, records, template, trained_turns)
    x, y, weight = training_inputs(preprocessor, inputs)
    return {k: np.asarray(v) for k, v in x.items()}, np.asarray(y), np.asarray(weight)


def text_of(preprocessor, ids):
    text = preprocessor.tokenizer.detokenize([int(i) for i in ids])
    return text.decode() if isinstance(text, bytes) else str(text)


def test_all_answers_and_their_ends_are_trained(case):
    """Of two turns, and nothing else; or those of the last turn alone."""
    template, preprocessor = case
    _, y, weight = encoded(preprocessor, template, turns())
    end = end_id(template, preprocessor.tokenizer)
    for labels, used, answers in zip(
        y, weight > 0, [["red", "circle"], ["yes", "no"]], strict=True
    ):
        places = np.flatnonzero(used & (labels == end))
        assert len(places) == 2
        starts = np.flatnonzero(np.diff(np.concatenate([[0], used.astype(int)])) == 1)
        for start, place, answer in zip(starts, places, answers, strict=True):
            assert used[start : place + 1].all()
            assert text_of(preprocessor, labels[start:place]).strip() == answer
    _, _, last = encoded(preprocessor, template, turns(), trained_turns="last")
    for row, alone in zip(weight > 0, last > 0, strict=True):
        starts = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int)])) == 1)
        row = row & (np.arange(len(row)) >= starts[1])
        np.testing.assert_array_equal(alone, row)


def test_the_tokens_of_a_prompt_begin_those_of_the_whole(case):
    template, preprocessor = case
    family = format_of(preprocessor)
    records = turns()
    whole = model_inputs(preprocessor, records, template)
    asked = without_last_answers(checked_records(records))
    alone = model_inputs(preprocessor, asked, template)
    if family.chat_form == "ids":
        pairs = zip(family.chat_tokens(whole), family.chat_tokens(alone), strict=True)
        for chat, prompt in pairs:
            assert chat.ids[: len(prompt.ids)] == prompt.ids
            assert not any(prompt.trained)
            assert all(chat.trained[len(prompt.ids) :])
        return
    x, _, _ = encoded(preprocessor, template, records)
    lengths = family.prompt_lengths(alone, preprocessor.sequence_length)
    packed = preprocessor.generate_preprocess(family.generation(alone))
    ids = np.asarray(packed["token_ids"])
    for row, prompt, size in zip(
        x["token_ids"], ids, lengths["sequence_length"], strict=True
    ):
        np.testing.assert_array_equal(row[:size], prompt[:size])


def test_marks_are_tokens_and_the_start_is_there_once(case):
    template, preprocessor = case
    x, y, _ = encoded(preprocessor, template, turns())
    tokenizer = preprocessor.tokenizer
    if template.opening:
        start = tokenizer.start_token_id
        assert (x["token_ids"][:, 0] == start).all()
        each = 2 if template.turn_opening else 1
        starts = (x["token_ids"] == start) & x["padding_mask"]
        assert (starts.sum(axis=1) == each).all()
    ends = np.concatenate([x["token_ids"][:, :1], y], 1) == end_id(template, tokenizer)
    written = (
        template.render(["a", "b"], ["c", "d"]).rstrip().count(template.end.strip())
    )
    assert (ends.sum(axis=1) == written).all()


def test_records_with_a_mark_of_the_template_are_refused(case):
    """It would end or begin a turn for the model. Neutralised, it is text."""
    template, preprocessor = case
    for mark in (*template.tokens, *template.marks):
        for key in ("prompts", "responses"):
            records = {**turns(1), key: [[f"what is {mark}?", "red"]]}
            with pytest.raises(ValueError, match="Record 'one' has .* is a mark of"):
                model_inputs(preprocessor, records, template)
            if mark.startswith("<|"):
                text = neutralize_image_marks(f"what is {mark}?")
                model_inputs(preprocessor, {**records, key: [[text, "red"]]}, template)


def test_a_prompt_in_the_template_is_not_written_twice(case):
    template, preprocessor = case
    prompt = template.render(["what color?"])
    records = {"ids": ["q"], "prompts": [prompt], "responses": ["red"]}
    match = "Record 'q' .*"
    if template.answer.strip():
        match += "looks as if it was written in a template already"
    with pytest.raises(ValueError, match=match):
        model_inputs(preprocessor, records, template)


def test_a_tokenizer_without_a_mark_is_refused_by_name():
    preprocessor = plain_text("Qwen").preprocessor
    with pytest.raises(ValueError, match=r"'qwen2\.5' writes '<\|im_start\|>', which"):
        inputs = model_inputs(preprocessor, turns(), "qwen2.5")
        training_inputs(preprocessor, inputs)


def test_phi3_and_llama2_get_the_reference_tokens():
    """Published examples: Phi-3 drops what follows a mark and puts SentencePiece's
    space in front of a text; Llama 2's space before an answer is that one."""
    tokenizer = CASES["phi3"]().preprocessor.tokenizer
    names = {i: tokenizer.id_to_token(i) for i in range(tokenizer.vocabulary_size())}

    def pieces(name, *texts):
        tokens = chat_tokens(chat_template(name).chat(*texts), tokenizer)
        return [names[i] for i in tokens.ids], tokens.trained

    ids, trained = pieces("phi3", ["red"], ["blue"])
    text = "".join(ids)
    assert text == "<|user|>\u2581red<|end|><|assistant|>\u2581blue<|end|>"
    ids, trained = pieces("llama2", ["red"], ["blue"])
    text = "".join(ids)
    assert text == "<s>\u2581[INST]\u2581red\u2581[/INST]\u2581blue\u2581</s>"
    first = "".join(i for i, used in zip(ids, trained, strict=True) if not used)
    assert first == "<s>\u2581[INST]\u2581red\u2581[/INST]"


@pytest.mark.parametrize("make", [tiny_gemma3, tiny_qwen3_5_chat])
def test_images_stand_at_their_marks(make):
    """In the first and in a later turn, and in the middle of a text."""
    model = make() if make is not tiny_gemma3 else tiny_gemma3(max_images=2)
    name = "gemma3" if make is tiny_gemma3 else "qwen3.5"
    preprocessor = model.preprocessor
    records = {
        "prompts": [["look <image> here", "and this?\n<image>"]],
        "responses": [["red", "blue"]],
        "images": [[random_image(0), random_image(1)]],
    }
    x, y, weight = encoded(preprocessor, name, records)
    tokenizer = preprocessor.tokenizer
    image = getattr(tokenizer, "image_placeholder_id", None) or tokenizer.image_token_id
    is_image = x["token_ids"][0] == image
    runs = np.flatnonzero(np.diff(np.concatenate([[0], is_image.astype(int)])) == 1)
    assert len(runs) == 2
    answers = np.flatnonzero(weight[0])
    assert runs[0] < answers[0] < runs[1] < answers[-1]
    assert "red" in text_of(preprocessor, y[0][answers])


@pytest.mark.parametrize("name", ["gemma3", "qwen3"])
def test_a_record_that_is_cut_is_too_long(name):
    """A row that was cut within a later prompt had no trained token near its end, and
    was taken for one that fits."""
    preprocessor = CASES[name]().preprocessor
    preprocessor.sequence_length = 30
    pair = DistillationPreprocessor(preprocessor, preprocessor, prompt_template=name)
    with pytest.raises(ValueError, match="Record 'one' needs a sequence_length"):
        pair(turns())


def test_families_without_template_refuse_one():
    for model in (tiny_pali_gemma(), tiny_mobilevlm()):
        with pytest.raises(ValueError, match="takes no prompt template"):
            model_inputs(model.preprocessor, turns(1), "gemma3")
        records = {**vqa_records(1), "system": ["Be brief."]}
        with pytest.raises(ValueError, match="no prompt template"):
            model_inputs(model.preprocessor, records, "auto")


def test_system_prompts():
    preprocessor = tiny_text_gemma().preprocessor
    records = {**turns(), "system": ["Be brief.", None]}
    prompts = model_inputs(preprocessor, records, "gemma3")["prompts"]
    assert ["Be brief." in prompt for prompt in prompts] == [True, False]
    with pytest.raises(ValueError, match="Record 'one' has a system prompt, for which"):
        model_inputs(preprocessor, records, "gemma")
    with pytest.raises(ValueError, match="Record 'one': its system prompt is empty"):
        model_inputs(preprocessor, {**records, "system": [" ", None]}, "gemma3")
    with pytest.raises(ValueError, match="Record 'two': its system prompt must be"):
        model_inputs(preprocessor, {**records, "system": ["a", 3]}, "gemma3")
    smollm = CASES["smollm3"]().preprocessor
    with pytest.raises(ValueError, match="'/think' in its system prompt"):
        model_inputs(smollm, {**records, "system": ["/think", None]}, "smollm3")


def test_auto_takes_what_is_known_and_says_so_once(caplog):
    from keras_betakd.preprocessing import prompt_templates

    prompt_templates._SAID.clear()
    caplog.set_level(logging.WARNING, "keras_betakd")
    model = tiny_gemma3()
    for _ in range(2):
        inputs = model_inputs(model.preprocessor, vqa_records(1), "auto")
        assert "chats" not in inputs
    assert ["nothing says" in r.message for r in caplog.records] == [True]
    remember_template(model.preprocessor, "gemma3")
    for _ in range(2):
        assert "chats" in model_inputs(model.preprocessor, vqa_records(1), "auto")
    assert len(caplog.records) == 2
    assert "its own chat template, 'gemma3'" in caplog.records[1].message
    remember_template(model.preprocessor, None)  # a base model, known to be one
    assert "chats" not in model_inputs(model.preprocessor, vqa_records(1), "auto")
    assert len(caplog.records) == 2


def test_wrong_templates_are_refused():
    model = tiny_gemma3()
    for wrong, match in (
        ("gema3", "did you mean 'gemma3'"),
        (3, "`prompt_template` must be"),
        ({"teacher": None, "pupil": None}, "the keys 'teacher', 'student'"),
    ):
        with pytest.raises(ValueError, match=match):
            DistillationPreprocessor(
                model.preprocessor, model.preprocessor, prompt_template=wrong
            )
    with pytest.raises(ValueError, match="`trained_turns` must be"):
        DistillationPreprocessor(
            model.preprocessor, model.preprocessor, trained_turns="first"
        )


def test_a_function_writes_prompts():
    """All turns but the last answer, which is trained and ends as without template."""
    preprocessor = tiny_text_gemma().preprocessor

    def write(messages):
        return "|".join(f"{m['role']}: {m['content']}" for m in messages)

    records = {**turns(1), "system": ["Be brief."]}
    inputs = model_inputs(preprocessor, records, write)
    assert inputs["prompts"] == [
        "system: Be brief.|user: what color?|assistant: red|user: and the shape?"
    ]
    assert inputs["responses"] == ["circle"]
    assert "test_a_function" in template_label(write)
    with pytest.raises(ValueError, match="must return a string"):
        model_inputs(preprocessor, records, lambda messages: None)


def test_a_function_leaves_the_start_token_to_the_preprocessor():
    """As `apply_chat_template` writes it, it stood there twice."""
    preprocessor = CASES["llama3"]().preprocessor
    start = preprocessor.tokenizer.start_token
    with pytest.raises(ValueError, match="begins record 'one' with '<.begin_of_text"):
        model_inputs(preprocessor, turns(1), lambda messages: f"{start}Hi")


@pytest.mark.parametrize("key", ["prompts", "responses", "system"])
def test_no_text_of_a_template_has_a_token_that_ends_it(key):
    """Of prompts and system prompts it was read as one; of answers it was refused."""
    preprocessor = CASES["llama3"]().preprocessor
    text = "a <|end_of_text|> b"
    records = {**turns(1), key: [text if key == "system" else [text, "red"]]}
    with pytest.raises(ValueError, match="Record 'one' has '<.end_of_text"):
        model_inputs(preprocessor, records, chat_template("llama3"))


def test_a_conversation_needs_all_its_answers():
    """It ended in keras-hub, as a `KeyError` without an id."""
    preprocessor = tiny_gemma3().preprocessor
    both = DistillationPreprocessor(
        preprocessor, preprocessor, prompt_template="gemma3"
    )
    with pytest.raises(ValueError, match=r"Record 'one' has 2 prompt\(s\) and 1 resp"):
        both({**turns(1), "responses": [["red"]]})


def test_models_of_different_families_get_their_own_templates():
    teacher, student = CASES["llama3"](), tiny_qwen3()
    remember_template(teacher.preprocessor, "llama3")
    remember_template(student.preprocessor, "qwen3")
    pair = DistillationPreprocessor(
        teacher.preprocessor, student.preprocessor, cross_tokenizer=True
    )
    assert {k: t.name for k, t in pair.prompt_templates.items()} == {
        "teacher": "llama3",
        "student": "qwen3",
    }
    x, y, weight = pair(turns())
    assert x["aligned"].sum(axis=1).min() >= 4
    end = end_id(chat_template("qwen3"), student.preprocessor.tokenizer)
    assert ((y == end) & (weight > 0)).sum() == 4


def test_answers_that_end_differently_are_refused_at_once():
    """An instruction-tuned teacher and a base student of one vocabulary."""
    teacher, student = tiny_gemma3(), tiny_gemma3()
    remember_template(teacher.preprocessor, "gemma3")
    pair = DistillationPreprocessor(teacher.preprocessor, student.preprocessor)
    with pytest.raises(ValueError, match="'<end_of_turn>', the student's with '<eos>'"):
        pair(vqa_records())
    named = DistillationPreprocessor(
        teacher.preprocessor, student.preprocessor, prompt_template="gemma3"
    )
    _, y, weight = named(vqa_records())
    end = student.preprocessor.tokenizer.token_to_id("<end_of_turn>")
    assert ((y == end) & (weight > 0)).sum(axis=1).tolist() == [1] * 4
    # What the student is trained with is what it is evaluated and saved with.
    assert remembered_template(student.preprocessor) == "gemma3"


def test_a_preprocessor_of_both_models_remembers_the_template_of_both():
    """It did not, so that the student was evaluated and saved without its template."""
    model = tiny_gemma3()
    shared = model.preprocessor
    DistillationPreprocessor(shared, shared, prompt_template="gemma3")
    assert remembered_template(shared) == "gemma3"
    assert "chats" in model_inputs(shared, vqa_records(1), "auto")
    with pytest.warns(UserWarning, match="remembered the prompt template 'gemma3' and"):
        DistillationPreprocessor(shared, shared, prompt_template=None)
    # One note cannot be right for two.
    remember_template(shared, "gemma3")
    different = {"teacher": "auto", "student": None}
    with pytest.raises(ValueError, match=r"copy\.copy\(preprocessor\)`. Received"):
        DistillationPreprocessor(shared, shared, prompt_template=different)
    assert remembered_template(shared) == "gemma3"
    own = copy.copy(shared)  # as the message says
    DistillationPreprocessor(shared, own, prompt_template=different)
    assert remembered_template(shared) == "gemma3"
    assert remembered_template(own) is None


def test_a_cache_leaves_the_teacher_its_template(tmp_path, recwarn):
    """A cache encodes the teacher's side alone: there is no student to remember one."""
    teacher = tiny_gemma3()
    remember_template(teacher.preprocessor, "gemma3")
    cache_teacher(
        teacher, vqa_records(1), tmp_path / "cache", prompt_template=None, verbose=0
    )
    assert remembered_template(teacher.preprocessor) == "gemma3"
    assert not [w for w in recwarn if "prompt template" in str(w.message)]


def test_prompts_as_they_are_stay_as_they_were():
    """With no template, inputs and weights are those of keras-hub's preprocessor."""
    model = tiny_gemma3()
    inputs = model_inputs(model.preprocessor, vqa_records(), None)
    assert set(inputs) == {"prompts", "responses", "images"}
    _, y, weight = encoded(model.preprocessor, None, vqa_records())
    end = model.preprocessor.tokenizer.end_token_id
    assert ((y == end) & (weight > 0)).sum(axis=1).tolist() == [1] * 4


def distiller_of(teacher, student, **kwargs):
    distiller = BetaKDDistiller(teacher, student, CosineProbsEnergy(), **kwargs)
    distiller.compile(optimizer=keras.optimizers.Adam(1e-3))
    return distiller


def test_a_conversation_trains_generates_and_is_saved(tmp_path):
    teacher, student = tiny_qwen3(), tiny_qwen3()
    distiller = distiller_of(teacher, student, prompt_template="qwen3")
    history = distiller.fit(turns(), batch_size=2, epochs=1, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    student.compile(sampler="greedy")
    asked = {"prompts": [["what color?", "sure?"]], "responses": [["red", "yes"]]}
    found = distiller.generate(asked, max_length=120, strip_prompt=True)
    whole = distiller.generate(asked, max_length=120)
    assert whole[0].endswith(found[0])
    answers = generate_answers(student, asked, max_new_tokens=4, progress=False)
    assert set(answers) == {"0"}
    assert student.preprocessor is not None  # taken away while it generates
    path = str(tmp_path / "distiller.keras")
    distiller.save(path)
    loaded = keras.saving.load_model(path)
    assert (
        loaded.preprocessor.prompt_templates == distiller.preprocessor.prompt_templates
    )
    before, after = (m.preprocessor(turns()) for m in (distiller, loaded))
    np.testing.assert_array_equal(before[1], after[1])


@pytest.mark.parametrize("name", ["gemma3", "qwen3.5"])
def test_other_forms_generate_after_a_conversation(name):
    """Families that take text alone, and that decode images in a way of their own."""
    student = CASES[name]()
    student.compile(sampler="greedy")
    distiller = distiller_of(CASES[name](), student, prompt_template=name)
    for images in ({}, {"images": [random_image(0)]}):
        mark = "<image>" if images else ""
        asked = {
            "prompts": [[f"{mark} color?", "sure?"]],
            "responses": [["red", "yes"]],
        }
        asked |= {key: [value] for key, value in images.items()}
        (text,) = distiller.generate(asked, max_length=120, strip_prompt=True)
        assert "color" not in text and not text.endswith(chat_template(name).end)
        answers = generate_answers(student, asked, max_new_tokens=4, progress=False)
        assert set(answers) == {"0"}


def test_an_evaluation_is_of_one_template(capsys):
    model = tiny_gemma3()
    assert "prompt_template" not in maker_of(model)
    assert maker_of(model, "gemma3")["prompt_template"] == "gemma3"
    options = ["--model", "m", "--benchmark", "gqa", "--data", "d"]
    with pytest.raises(SystemExit):
        evaluate.main([*options, "--prompt-template", "gema3"])
    assert "did you mean 'gemma3'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["gemma3", "qwen3", "qwen3.5"])
def test_generation_stops_at_the_end_of_a_turn(name, monkeypatch):
    """keras-hub stops at the tokenizer's end token alone, which Gemma never writes."""
    model = CASES[name]()
    template = chat_template(name)
    end = end_id(template, model.preprocessor.tokenizer)
    seen = []
    if name == "qwen3.5":
        from keras_betakd.evaluation import decoding

        original = decoding.uncached_decoder

        def spied(*args):
            decode = original(*args)
            from keras_betakd.models.chat_generation import stop_tokens

            def run(inputs, length):
                seen.append(stop_tokens(model.preprocessor, inputs))
                return decode(inputs, length)

            return run

        monkeypatch.setattr(decoding, "uncached_decoder", spied)
    else:
        original = type(model).generate_step

        def step(self, inputs, stop_token_ids=None):
            seen.append(list(stop_token_ids))
            return original(self, inputs, stop_token_ids)

        monkeypatch.setattr(type(model), "generate_step", step)
    records = {"prompts": ["what color?"]}
    generate_answers(
        model, records, max_new_tokens=2, progress=False, prompt_template=name
    )
    assert all(end in stops for stops in seen) and seen


def test_presets_keep_the_template(tmp_path):
    model = tiny_gemma3()
    remember_template(model.preprocessor, "gemma3")
    save_preset(model, tmp_path / "tuned")
    loaded = load_model(tmp_path / "tuned")
    assert remembered_template(loaded.preprocessor) == "gemma3"
    own = dataclasses.replace(chat_template("gemma3"), name="mine", after_end="\n\n")
    remember_template(model.preprocessor, own)
    save_preset(model, tmp_path / "tuned")
    loaded = load_model(tmp_path / "tuned")
    assert remembered_template(loaded.preprocessor) == own
    keras_hub.models.CausalLM.from_preset(str(tmp_path / "tuned"))
    (tmp_path / "tuned" / "prompt_template.json").write_text('{"prompt_template": 1}')
    with pytest.raises(ValueError, match=r"prompt_template\.json' is damaged"):
        load_model(tmp_path / "tuned")


def test_a_cache_of_another_template_is_refused(tmp_path):
    teacher, student = tiny_gemma3(), tiny_gemma3()
    records = vqa_records()
    options = {"verbose": 0}
    folder = tmp_path / "cache"
    cache_teacher(teacher, records, folder, prompt_template="gemma3", **options)
    with pytest.raises(
        ValueError, match="begun with another preprocessor.*prompt template gemma3"
    ):
        cache_teacher(teacher, records, folder, prompt_template=None, **options)
    with pytest.raises(ValueError, match="was made with another prompt template"):
        distiller_of(CachedTeacher(folder), student, prompt_template="gemma3n")
    cached = distiller_of(CachedTeacher(folder), student, prompt_template="gemma3")
    live = distiller_of(teacher, student, prompt_template="gemma3")
    losses = [
        model.evaluate(records, batch_size=4, verbose=0, return_dict=True)["loss"]
        for model in (cached, live)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    with pytest.raises(ValueError, match="A distiller's own `prompt_template`"):
        cache_teacher(live, records, tmp_path / "other", prompt_template="gemma3")
