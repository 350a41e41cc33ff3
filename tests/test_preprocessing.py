"""Raw records to the answer-position form: positions, weights, and every refusal."""

import numpy as np
import pytest
from tiny_models import (
    random_image,
    tiny_gemma3,
    tiny_gemma_text,
    tiny_pali_gemma,
    vqa_records,
)

from keras_betakd import BetaKDDistiller, DistillationPreprocessor, ForwardKLEnergy


@pytest.fixture(scope="module")
def gemma3():
    return tiny_gemma3().preprocessor


def pieces(preprocessor, ids, weights):
    ids = ids[weights > 0]
    return [preprocessor.tokenizer.id_to_token(int(i)) for i in ids]


@pytest.mark.parametrize("other", [tiny_gemma3, tiny_pali_gemma])
def test_both_models_answer_the_same_tokens(gemma3, other):
    """The models differ in image tokens and length; the answers are the same."""
    student = other(image_size=32, sequence_length=60).preprocessor
    x, y, weight = DistillationPreprocessor(gemma3, student, 6)(vqa_records(3))
    assert pieces(gemma3, y[0], weight[0]) == ["▁red", "<eos>"]
    assert y.shape == weight.shape == x["teacher_positions"].shape == (3, 6)
    for role in ("teacher", "student"):
        tokens = x[role]["token_ids"]
        for i in range(3):
            used = weight[i] > 0
            # Position p predicts token p + 1.
            after = x[f"{role}_positions"][i][used] + 1
            assert tokens[i][after[:-1]].tolist() == y[i][used][:-1].tolist()
    assert (x["student_positions"] != x["teacher_positions"]).any() or (
        other is tiny_gemma3
    )
    assert (y[weight == 0] == 0).all()


def test_prompt_tokens_carry_no_weight(gemma3):
    records = {
        "prompts": ["<image>\nred red red"],
        "responses": ["red"],
        "images": [[random_image(0)]],
    }
    _, y, weight = DistillationPreprocessor(gemma3, gemma3, 8)(records)
    assert weight.sum() == 2
    assert pieces(gemma3, y, weight) == ["▁red", "<eos>"]


def test_records_as_keras_hub_takes_them(gemma3):
    """With an image mark in the prompt, one array of images, and strings as bytes."""
    records = {
        "prompts": np.array([b"<start_of_image>\nwhat color?"] * 2),
        "responses": np.array([b"red", b"blue"]),
        "images": np.stack([random_image(0), random_image(1)]),
    }
    x, _, _ = DistillationPreprocessor(gemma3, gemma3, 8)(records)
    expected, _, _ = gemma3(
        {
            "prompts": ["<start_of_image>\nwhat color?"] * 2,
            "responses": ["red", "blue"],
            "images": records["images"].astype("float32")[:, None],
        }
    )
    for name, value in expected.items():
        np.testing.assert_allclose(
            x["student"][name], np.asarray(value), atol=1e-6, err_msg=name
        )


def test_a_sequence_that_fits_exactly_is_not_refused():
    long = tiny_gemma3(sequence_length=96).preprocessor
    x, _, _ = DistillationPreprocessor(long, long, 6)(vqa_records(1))
    # One less than the tokens: the last one is only a label.
    exact = int(x["student"]["padding_mask"].sum()) - 1
    short = tiny_gemma3(sequence_length=exact).preprocessor
    DistillationPreprocessor(short, short, 6)(vqa_records(1))
    tight = tiny_gemma3(sequence_length=exact - 1).preprocessor
    message = f"'q0' needs a sequence_length of {exact} .* more than its {exact - 1}"
    with pytest.raises(ValueError, match=message):
        DistillationPreprocessor(tight, tight, 6)(vqa_records(1))


def test_an_image_that_would_be_cut_names_its_record():
    """keras-hub silently truncates image tokens but keeps their features."""
    student = tiny_gemma3(sequence_length=40).preprocessor
    records = vqa_records(2)
    records["prompts"][1] = "is there a circle? " * 4 + "<image>"
    with pytest.raises(ValueError, match="'q1' needs a sequence_length of"):
        DistillationPreprocessor(student, student, 6)(records)


def no_image(records):
    records["images"][1] = []


def two_marks(records):
    records["prompts"][1] = "<image><image> what color?"


def no_mark(records):
    records["prompts"][1] = "what color?"


def two_images(records):
    records["prompts"][1] = "<image><image> what color?"
    records["images"][1] = [random_image(0), random_image(1)]


def channels_first(records):
    records["images"][1] = [np.zeros((3, 8, 8), "uint8")]


def long_answer(records):
    records["responses"][1] = "one two three four five six seven eight nine ten"


@pytest.mark.parametrize(
    "corrupt, message",
    [
        (no_image, r"'q1' has 0 image\(s\) and 1 image mark"),
        (two_marks, r"'q1' has 1 image\(s\) and 2 image mark"),
        (no_mark, r"'q1' has 1 image\(s\) and 0 image mark"),
        (two_images, "'q1' has 2 images.* max_images_per_prompt=1"),
        (channels_first, r"'q1': An image array must .*moveaxis.* shape \(3, 8, 8\)"),
        (long_answer, "record 'q1' has .* more than max_response_length=6"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_bad_record_is_named(gemma3, corrupt, message):
    records = vqa_records(3)
    corrupt(records)
    with pytest.raises(ValueError, match=message):
        DistillationPreprocessor(gemma3, gemma3, 6)(records)


def test_pali_gemma_takes_exactly_one_image():
    preprocessor = tiny_pali_gemma().preprocessor
    records = vqa_records(2)
    no_image(records)
    with pytest.raises(ValueError, match="'q1' has 0 images.* exactly one"):
        DistillationPreprocessor(preprocessor, preprocessor, 6)(records)


def test_images_for_a_model_without_vision_are_refused():
    preprocessor = tiny_gemma_text().preprocessor
    with pytest.raises(ValueError, match="has no `image_converter`"):
        DistillationPreprocessor(preprocessor, preprocessor, 6)(vqa_records(2))


def test_different_vocabularies_are_refused(gemma3):
    other = tiny_gemma3(extra_word="giraffe").preprocessor
    with pytest.raises(ValueError, match="differ first at id"):
        DistillationPreprocessor(gemma3, other, 6)(vqa_records(1))


def test_different_vocabulary_sizes_are_refused_at_construction():
    teacher, student = tiny_gemma_text(), tiny_gemma_text()
    size = teacher.backbone.vocabulary_size
    config = student.backbone.get_config()
    config["vocabulary_size"] = size + 8
    wide = type(student)(
        backbone=type(student.backbone).from_config(config),
        preprocessor=student.preprocessor,
    )
    with pytest.raises(ValueError, match=f"vocabulary_size={size} .*={size + 8}"):
        BetaKDDistiller(teacher, wide, ForwardKLEnergy())


@pytest.mark.parametrize(
    "records, message",
    [
        ({"prompts": ["a"]}, r"need \['responses'\]"),
        ({"prompts": ["a", "b"], "responses": ["c"]}, "one response"),
    ],
)
def test_incomplete_records_are_refused(gemma3, records, message):
    with pytest.raises(ValueError, match=message):
        DistillationPreprocessor(gemma3, gemma3)(records)


def test_bad_capacity_is_refused(gemma3):
    with pytest.raises(ValueError, match="Received: max_response_length=0"):
        DistillationPreprocessor(gemma3, gemma3, 0)


def test_text_families_train_on_the_response_alone():
    """keras-hub's text preprocessors take one text and weigh all of it."""
    preprocessor = tiny_gemma_text(sequence_length=32).preprocessor
    records = {"prompts": ["what color is it?"], "responses": ["red"]}
    x, y, weight = DistillationPreprocessor(preprocessor, preprocessor, 6)(records)
    assert pieces(preprocessor, y, weight) == ["▁red", "<eos>"]
    start = x["student"]["token_ids"][0, 0]
    assert start == preprocessor.tokenizer.start_token_id
    tight = tiny_gemma_text(sequence_length=5).preprocessor
    with pytest.raises(ValueError, match="needs a sequence_length of"):
        DistillationPreprocessor(tight, tight, 6)(records)
