"""`distiller.generate`: raw records with `<image>` marks, as `fit` takes them."""

import functools

import keras
import numpy as np
import pytest
from tiny_families import FAMILIES, SEVERAL_IMAGES, VISION, tiny_mobilevlm, tiny_text
from tiny_models import random_image, tiny_gemma3, tiny_gemma_text

from keras_betakd import (
    BetaKDDistiller,
    CosineProbsEnergy,
    DistillationPreprocessor,
    TaskBeta,
)
from keras_betakd.evaluation import generate_answers
from keras_betakd.evaluation.answer_text import clean_answer

OWN = {
    "Gemma3": "<start_of_image>",
    "Gemma3n": "<start_of_image>",
    "Gemma4": "<|image|>",
    "Qwen3_5": "<|vision_start|><|image_pad|><|vision_end|>",
    "MobileVLM": "<image>",
    "Qwen2_5VL": "<|vision_start|><|image_pad|><|vision_end|>",
}
QUESTION = "\nwhat color?"


def loud(model):
    """Weights whose answers depend on all that the model sees, and no sampling."""
    rng = np.random.default_rng(0)
    for weight in model.backbone.weights:
        if weight.dtype == "float32":
            weight.assign(rng.normal(0, 0.4, weight.shape))
    model.compile(sampler="greedy")
    return model


@functools.lru_cache(maxsize=1)
def asking(name):
    model = FAMILIES[name]()
    distiller = BetaKDDistiller(
        FAMILIES[name](), loud(model), CosineProbsEnergy(), TaskBeta()
    )
    return functools.partial(
        distiller.generate, max_length=max_length(name), strip_prompt=True
    ), distiller


def max_length(name):
    return 96 if name == "MobileVLM" else 32  # with the 84 tokens of its prompt


IMAGES = [random_image(0, 20, 12), random_image(1), random_image(2, 9, 30)]


@pytest.mark.parametrize("name", VISION)
def test_the_mark_of_the_library_is_that_of_the_family(name):
    """It stayed text, and the image was never seen: other answers, without a word."""
    generate, distiller = asking(name)
    records = {"images": IMAGES, "prompts": ["<image>" + QUESTION] * 3}
    answers = generate({**records, "ids": ["a", "b", "c"], "responses": ["red"] * 3})
    # The same as those of an implementation that asks one by one.
    expected = generate_answers(
        distiller.student,
        records,
        max_length=max_length(name),
        batch_size=1,
        progress=False,
    )
    assert list(map(clean_answer, answers)) == list(expected.values())
    if name in OWN:
        own = {"images": IMAGES, "prompts": [OWN[name] + QUESTION] * 3}
        assert generate(own) == answers
    one = {"images": IMAGES[1], "prompts": "<image>" + QUESTION}
    assert generate(one) == answers[1]
    assert generate({**one, "images": [IMAGES[1]], "ids": "b"}) == answers[1]
    single = {key: value[:1] for key, value in records.items()}
    assert generate(single) == answers[:1]


@pytest.mark.parametrize("name", VISION)
def test_an_image_without_mark_or_a_mark_without_image_is_refused(name):
    generate, _ = asking(name)
    asked = {"ids": ["q7"], "prompts": ["<image>" + QUESTION]}
    with pytest.raises(ValueError, match="'q7' has 0 image"):
        generate(asked)
    with pytest.raises(ValueError, match="number 0 of the batch has 0 image"):
        generate("<image>" + QUESTION)
    if name in SEVERAL_IMAGES:
        with pytest.raises(ValueError, match=r"'q7' has 1 image\(s\) and 0 image mark"):
            generate({**asked, "prompts": [QUESTION], "images": [IMAGES[0]]})
        words = generate("what color?")
        assert isinstance(words, str)
        assert generate(["what color?"]) == [words]
        assert generate(np.array(["what color?"])) == [words]
        assert generate({"prompts": "what color?", "images": []}) == words


def test_several_images_and_none_in_one_batch():
    generate, distiller = asking("Gemma3")
    records = {
        "prompts": ["<image><image>" + QUESTION, QUESTION, "<image>" + QUESTION],
        "images": [IMAGES[:2], None, IMAGES[2:]],
    }
    rows = zip(records["prompts"], records["images"], strict=True)
    alone = [generate({"prompts": p, "images": i}) for p, i in rows]
    assert generate(records) == alone
    assert distiller.student.generate_function is not None


def test_text_models_take_text_alone():
    student = loud(tiny_gemma_text())
    distiller = BetaKDDistiller(tiny_gemma_text(), student, CosineProbsEnergy())
    expected = student.generate("what color?", max_length=20)
    assert distiller.generate("what color?", max_length=20) == expected
    with pytest.raises(ValueError, match="mark '<image>' in its prompt, but this mod"):
        distiller.generate("<image>" + QUESTION)
    with pytest.raises(ValueError, match="number 0 .* has 1 image"):
        distiller.generate({"prompts": QUESTION, "images": IMAGES[0]})


@pytest.mark.parametrize("wrong", [0, -3, True, 20.0, "20"])
def test_a_length_that_is_none_is_refused(wrong):
    """0 was the default length, and others were errors of slices inside keras-hub."""
    student = tiny_gemma_text()
    distiller = BetaKDDistiller(tiny_gemma_text(), student, CosineProbsEnergy())
    with pytest.raises(ValueError, match="`max_length` must be a positive integer. Re"):
        distiller.generate("what color?", max_length=wrong)
    for name in ("max_length", "max_new_tokens", "batch_size"):
        with pytest.raises(ValueError, match=f"`{name}` must be a positive integer. R"):
            generate_answers(student, {"prompts": ["what color?"]}, **{name: wrong})


def test_a_student_without_vision_is_shown_the_text_alone():
    student, teacher = loud(tiny_gemma_text()), tiny_gemma3()
    pair = DistillationPreprocessor(
        teacher.preprocessor, student.preprocessor, blind_student=True
    )
    distiller = BetaKDDistiller(
        teacher, student, CosineProbsEnergy(), preprocessor=pair
    )
    answer = distiller.generate(
        {"images": IMAGES[0], "prompts": "<image>" + QUESTION}, max_length=20
    )
    assert answer == student.generate(QUESTION[1:], max_length=20)


def test_the_earlier_answers_of_a_conversation_are_shown():
    student = loud(tiny_mobilevlm(sequence_length=256))
    distiller = BetaKDDistiller(
        tiny_mobilevlm(sequence_length=256), student, CosineProbsEnergy()
    )
    turns = ["<image>" + QUESTION, "and the shape?"]
    generate = functools.partial(distiller.generate, strip_prompt=True, max_length=200)

    def ask(responses):
        records = {"prompts": [turns], "images": [IMAGES[0]]}
        return generate({**records, "responses": [responses]})

    native = {"prompts": [turns], "images": [IMAGES[0]], "responses": [["red"]]}
    expected = student.generate(native, strip_prompt=True, max_length=200)
    assert ask(["red"]) == ask(["red", "square"]) == expected != ask(["blue"])
    both = {"prompts": [turns, [turns[0]]], "images": [IMAGES[0]] * 2}
    answers = generate({**both, "responses": [["red", "square"], ["blue"]]})
    alone = generate({"prompts": turns[0], "images": IMAGES[0]})
    assert answers == [*expected, alone]


def test_other_arguments_are_passed_on():
    generate, distiller = asking("Gemma3")
    asked = {"images": IMAGES[0], "prompts": "<image>" + QUESTION}
    own = {"images": IMAGES[1], "prompts": OWN["Gemma3"] + QUESTION}
    whole = distiller.generate(own, max_length=60)
    assert whole == distiller.student.generate(own, max_length=60)
    stop = [distiller.student.preprocessor.tokenizer.token_to_id("s")]
    for options in ({"stop_token_ids": stop}, {"max_length": 50}):
        expected = distiller.student.generate(own, **options)
        assert distiller.generate(own, **options) == expected
    with pytest.raises(ValueError, match="leaves no room in 8. Give a greater `max_l"):
        distiller.generate(asked, max_length=8)
    with pytest.raises(ValueError, match="no key 'image'; did you mean"):
        distiller.generate({"image": IMAGES[0], "prompts": "<image>" + QUESTION})
    with pytest.raises(ValueError, match="must have one entry for each of the 2"):
        distiller.generate({"images": IMAGES[:1], "prompts": [QUESTION] * 2})


def test_images_that_keras_hub_misplaces_are_answered_greedily_alone():
    generate, distiller = asking("Qwen3_5")
    distiller.student.compile(sampler="top_k")
    with pytest.raises(ValueError, match=r'compile\(sampler="greedy"\)'):
        generate({"images": IMAGES[0], "prompts": "<image>" + QUESTION})
    distiller.student.compile(sampler="greedy")
    whole = distiller.generate(
        {"images": IMAGES[0], "prompts": "<image>" + QUESTION},
        max_length=max_length("Gemma3"),
    )
    answer = generate({"images": IMAGES[0], "prompts": "<image>" + QUESTION})
    assert whole.endswith(answer)
    assert "what color?" in whole[: -len(answer)]


def test_a_tf_dataset_is_answered_batch_by_batch():
    tf = pytest.importorskip("tensorflow")
    student = loud(tiny_text("GPT2"))
    distiller = BetaKDDistiller(tiny_text("GPT2"), student, CosineProbsEnergy())
    prompts = ["red", "what color?", "yes"]
    dataset = tf.data.Dataset.from_tensor_slices({"prompts": prompts}).batch(2)
    expected = distiller.generate(prompts[:2], max_length=24)
    expected += distiller.generate(prompts[2:], max_length=24)
    assert distiller.generate(dataset, max_length=24) == expected


def test_tensors_are_passed_on_to_a_student_without_preprocessor():
    student = loud(tiny_gemma_text())
    tokens = student.preprocessor.generate_preprocess(["red"], sequence_length=12)
    student.preprocessor = None
    distiller = BetaKDDistiller(tiny_gemma_text(), student, CosineProbsEnergy())
    found = distiller.generate(tokens, stop_token_ids=None)
    expected = student.generate(tokens, stop_token_ids=None)
    np.testing.assert_array_equal(
        *(keras.ops.convert_to_numpy(x["token_ids"]) for x in (found, expected))
    )
