"""Literal special tokens in texts: none moves an image or ends an answer in silence."""

import numpy as np
import pytest
from tiny_families import FAMILIES, GEMMA3N_PIECES, GEMMA4_PIECES, QWEN_PIECES, VISION
from tiny_models import random_image

from keras_betakd import DistillationPreprocessor
from keras_betakd.data import neutralize_image_marks
from keras_betakd.preprocessing import format_of, model_inputs
from keras_betakd.preprocessing.special_tokens import special_tokens

GEMMA3 = ("<start_of_image>", "<end_of_image>", "<img>")
# Every token of images, videos and sounds in the families' vocabularies. BLIP-2 (OPT)
# and MobileVLM have the project's own mark alone.
TOKENS = {
    "PaliGemma": GEMMA3,
    "Gemma3": GEMMA3,
    "Gemma3n": [t for t in GEMMA3N_PIECES if "turn" not in t and t != "<mask>"],
    "Gemma4": GEMMA4_PIECES[:4],
    "Qwen3_5": QWEN_PIECES[3:],
    "BLIP2_OPT": ("<image>",),
    "BLIP2_FlanT5": GEMMA3,
    "MobileVLM": (),
    "Qwen2_5VL": QWEN_PIECES[3:],
}
CASES = [(family, token) for family, tokens in TOKENS.items() for token in tokens]


def record(ask="what is it?", answer="red"):
    return {
        "ids": ["q1"],
        "prompts": [f"{ask}\n<image>"],
        "responses": [answer],
        "images": [[random_image(0)]],
    }


def pair(family):
    preprocessor = FAMILIES[family]().preprocessor
    return DistillationPreprocessor(preprocessor, preprocessor, 40)


@pytest.mark.parametrize("family, token", CASES)
def test_an_image_token_in_a_text(family, token):
    # Gemma 3's `<img>` in a question moved the image into the question.
    process = pair(family)
    family = format_of(process.student_preprocessor)
    asked = record(f"what is {token} ?")
    message = "Record 'q1' has .*neutralize_image_marks.*prompt="
    if token in (*family.own_marks, "<image>"):  # it is one mark too many
        message = r"Record 'q1' has 1 image(\(s\))? and 2 image mark"
    with pytest.raises(ValueError, match=message):
        process(asked)
    with pytest.raises(ValueError, match="Record 'q1' has .* in its response"):
        process(record(answer=f"red {token} red"))
    plain = neutralize_image_marks(token)
    assert plain != token
    model_inputs(process.student_preprocessor, record(answer=f"red {plain} red"))
    x = process(record(f"what is {plain} ?"))[0]["student"]
    clean = process(record())[0]["student"]
    for inputs in (x, clean):  # the image's tokens stand together
        if "vision_indices" in inputs:
            places = inputs["vision_indices"][0]
            places = places[places > 0]
            assert len(places) == 4 and (np.diff(places) == 1).all()


@pytest.mark.parametrize("family", VISION)
def test_the_projects_own_mark_in_a_response(family):
    with pytest.raises(
        ValueError, match="'q1' has the image mark '<image>' in its resp"
    ):
        pair(family)(record(answer="an <image> of it"))


@pytest.mark.parametrize("family", FAMILIES)
def test_ordinary_text_passes(family):
    texts = ["if a<b and b>c", "<b>bold</b> <i>", "x <y> [1, 2]", "<start> </end>"]
    preprocessor = FAMILIES[family](sequence_length=256).preprocessor
    for text in texts:
        rows = record(text, text)
        if family not in VISION:
            rows = {**rows, "prompts": [text], "images": [[]]}
        model_inputs(preprocessor, rows)


def test_chat_marks_are_allowed_in_prompts_and_at_the_end_of_answers():
    ask = "<start_of_turn>user\nwhat color<end_of_turn>\n<start_of_turn>model\n"
    process = pair("Gemma3n")
    asked = {**record(), "prompts": [ask.replace("what", "<image>what")]}
    assert process({**asked, "responses": ["red<end_of_turn>"]})[2].sum() == 3
    chat = "<|im_start|>user\n<image>hi<|im_end|>\n<|im_start|>assistant\n"
    pair("Qwen3_5")({**record(), "prompts": [chat]})


@pytest.mark.parametrize(
    "family, mark",
    [
        ("Gemma3", "<start_of_image>"),
        ("Gemma4", "<|image|>"),
        ("Qwen3_5", "<|image_pad|>"),
        ("Qwen3_5", "<|vision_start|><|image_pad|><|vision_end|>"),
    ],
)
def test_a_familys_own_mark_stands_for_an_image(family, mark):
    own = {**record(), "prompts": [f"what is it?\n{mark}"]}
    x, _, _ = pair(family)(own)
    if mark.startswith("<|vision") or family != "Qwen3_5":
        expected, _, _ = pair(family)(record())
        tokens = x["student"]["token_ids"], expected["student"]["token_ids"]
        np.testing.assert_array_equal(*tokens)


ENDS = [
    ("Qwen3_5", "<|im_end|>"),
    ("Qwen3_5", "<|endoftext|>"),
    ("BLIP2_OPT", "</s>"),
    ("BLIP2_OPT", "<pad>"),
    ("BLIP2_OPT", "\n"),  # ends its answers
    ("MobileVLM", "<s>"),
    ("MobileVLM", "</s>"),
    ("GPT2", "<|endoftext|>"),
    ("Llama3", "<|end_of_text|>"),
    ("Phi3", "<|endoftext|>"),
]


@pytest.mark.parametrize("family, end", ENDS)
def test_an_end_mark_within_an_answer(family, end):
    # What followed was trained, though generation stops there.
    rows = record(answer=f"red{end}blue")
    if family not in VISION:
        rows = {**rows, "prompts": ["hi"], "images": [[]]}
    with pytest.raises(ValueError, match="Record 'q1' has .*in its response, which"):
        pair(family)(rows)


@pytest.mark.parametrize("family", ["PaliGemma", "Gemma3", "BLIP2_FlanT5", "Llama"])
def test_an_end_mark_that_the_tokenizer_reads_as_text(family):
    """SentencePiece takes `<eos>` for five characters, so it is an ordinary text."""
    preprocessor = FAMILIES[family]().preprocessor
    end = preprocessor.tokenizer.end_token
    rows = record(answer=f"red {end} red")
    if family not in VISION:
        rows = {**rows, "prompts": ["hi"], "images": [[]]}
    _, y, weight = DistillationPreprocessor(preprocessor, preprocessor, 40)(rows)
    ids = y[weight > 0].tolist()
    assert ids.count(preprocessor.tokenizer.end_token_id) == 1


@pytest.mark.parametrize("text", ["\uff1cimg\uff1e", "<im\x01g>"])
def test_a_mark_that_the_tokenizer_normalises(text):
    """Full-width brackets, or a control character: SentencePiece reads `<img>`."""
    with pytest.raises(
        ValueError, match="'q1' has the image mark '<img>' in its prompt"
    ):
        pair("Gemma3")(record(text))
    # A tokenizer that does not normalise takes it as the text that it is.
    pair("BLIP2_OPT")(record(text.replace("img", "image")))


def test_the_tokens_of_another_vocabulary_are_found_anew():
    found = {}
    for family in ("Gemma3", "Gemma3n"):
        family = format_of(FAMILIES[family]().preprocessor)
        tokenizer = family.preprocessor.tokenizer
        found[tokenizer] = special_tokens(tokenizer, family.token_ids)
        assert special_tokens(tokenizer, family.token_ids) is found[tokenizer]
    first, second = found.values()
    assert "<img>" in first.images and "<img>" not in second.images
