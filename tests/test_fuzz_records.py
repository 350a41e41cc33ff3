"""Damaged raw records are refused in the documented way, or become a batch that trains.

See `test_fuzz_energies.py` for the command of a long run.
"""

import copy
import functools
import math

import numpy as np
import pytest
from fuzz_cases import EXAMPLES
from hypothesis import given, settings
from hypothesis import strategies as st
from json_mutations import VALUES
from tiny_models import IMAGE_SIZE, random_image, tiny_gemma3, vqa_records

from keras_betakd import DistillationPreprocessor
from keras_betakd.preprocessing.batches import BatchFormatter

DOCUMENTED = (ValueError, OSError)
SIZE = 3
many = settings(max_examples=25 * settings.default.max_examples)

# Each is no text that a student could be trained on.
NO_TEXTS = [
    *(None, math.nan, np.float32("nan"), True, False, 5, 1.5, b"\xff"),
    *({"a": 1}, ["red", None], [["red"]], np.array([["red"]]), object(), print),
    *("", " \n", "a\ud800b", "<start_of_image>", "red <img> red", "red <image>"),
]
# Prompts may be without text, and mark their image.
NO_PROMPTS = [*NO_TEXTS[: NO_TEXTS.index("")], "a\ud800b", "red <img> red"]
LARGE = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), 1.0)
NO_IMAGES = [
    *(5, True, math.nan, "no/such/image.png", b"GIF89a", {"a": 1}, object()),
    *(LARGE * math.nan, LARGE * math.inf, LARGE * -math.inf, LARGE * -5, LARGE * 1e30),
    *(LARGE.astype(complex), LARGE.astype(str), LARGE.astype(object)),
    *(np.zeros((0, 0, 3), "uint8"), np.zeros((4, 0, 3), "uint8"), np.zeros(3, "uint8")),
    *(np.zeros((4, 4, 5), "uint8"), np.zeros((1, 2, 4, 4, 3), "uint8")),
    *(np.zeros((4, 4, 3), "int64") - 1, np.zeros((4, 4, 3), "int64") + 256),
]
NO_WEIGHTS = [math.nan, math.inf, -1, -0.5, 10**400, "1", None, [1], {"a": 1}, 1j]
NO_COLUMNS = [5, 1.5, True, "abc", {"a": 1}, print]


@functools.cache
def formatter():
    """The preprocessing of a pair of two Gemma 3, which is all that is damaged here."""
    teacher, student = tiny_gemma3(width=16), tiny_gemma3()
    return BatchFormatter(
        DistillationPreprocessor(teacher.preprocessor, student.preprocessor, 6)
    )


def records():
    found = {**vqa_records(SIZE), "sample_weight": [1.0] * SIZE}
    return {key: list(value) for key, value in found.items()}


@st.composite
def wrong_entry(draw):
    """Records with one entry that must be refused."""
    found, i = records(), draw(st.integers(0, SIZE - 1))
    key, values = draw(
        st.sampled_from(
            [
                ("responses", NO_TEXTS),
                ("prompts", NO_PROMPTS),
                ("images", NO_IMAGES),
                ("sample_weight", NO_WEIGHTS),
            ]
        )
    )
    value = draw(st.sampled_from(values))
    found[key][i] = [value] if key == "images" and draw(st.booleans()) else value
    return found


@st.composite
def wrong_columns(draw):
    """Records with a column that must be refused, by its name, length or type."""
    found = records()
    key = draw(st.sampled_from(sorted(found)))
    how = draw(st.sampled_from(["short", "long", "empty", "type", "name", "more"]))
    if how == "short":
        found[key] = found[key][:-1]
    elif how == "long":
        found[key] = [*found[key], found[key][0]]
    elif how == "empty":
        found[key] = []
    elif how == "type":
        found[key] = draw(st.sampled_from(NO_COLUMNS))
    elif how == "name":
        # Without ids and weights the rest is whole; the new name is what is wrong.
        key = draw(st.sampled_from(sorted({*found} - {"prompts"})))
        found[key[:-1]] = found.pop(key)
    else:
        names = ["image", "labels", "text", "sample_weights", "Images", "id", ""]
        found[draw(st.sampled_from(names))] = list(found["responses"])
    return found


@st.composite
def anything(draw):
    """Records with a few entries or columns replaced by whatever there is."""
    found = records()
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from(sorted(found)))
        value = draw(VALUES | st.sampled_from(_pixels()))
        if draw(st.integers(0, 4)) == 0 or not isinstance(found[key], list):
            found[key] = copy.deepcopy(value)
        elif found[key]:
            found[key][draw(st.integers(0, len(found[key]) - 1))] = value
    return found


def _pixels():
    """Images of many types and shapes, some of them usable."""
    image = random_image(0)
    types = ("uint8", "uint16", "int8", "int64", "float16", "float64", "bool")
    shapes = (image[..., 0], image[..., :1], image[..., :2], image[None], image[:1, :1])
    return [
        *(image.astype(kind) for kind in types),
        *(image / scale for scale in (255, 127.5, 1.0, 1e-3)),
        *(image / 127.5 - 1, image.tolist(), np.dstack([image, image[..., :1]])),
        *shapes,
    ]


def assert_trains(batch):
    """Whether a batch is what a step expects: finite, in range, of fixed shapes."""
    x, y, weights = batch
    assert y.shape == weights.shape and y.shape[1] == 6
    assert np.isfinite(weights).all() and (weights >= 0).all()
    assert (y >= 0).all() and (y < 160).all()
    for role in ("teacher", "student"):
        for key, value in x[role].items():
            value = np.asarray(value)
            assert np.isfinite(value.astype("float64")).all(), key
            if key == "images":
                assert np.abs(value).max() <= 1.001, "pixels out of their range"


@many
@given(found=wrong_entry())
def test_entries_that_are_no_text_image_or_weight_are_refused(found):
    EXAMPLES["wrong entries"] += 1
    with pytest.raises(DOCUMENTED) as caught:
        formatter()(found)
    assert not isinstance(caught.value, UnicodeError), "it names no record"


@many
@given(found=wrong_columns())
def test_columns_of_another_name_length_or_type_are_refused(found):
    EXAMPLES["wrong columns"] += 1
    with pytest.raises(DOCUMENTED):
        formatter()(found)


@many
@given(found=anything())
def test_whatever_records_hold_they_are_refused_or_train(found):
    EXAMPLES["records"] += 1
    try:
        batch = formatter()(found)
    except DOCUMENTED:
        return
    assert_trains(batch)


def test_an_id_may_be_any_whole_number():
    """One beyond the range of floats ended in an OverflowError."""
    found = records()
    found["ids"][1] = 10**400
    x, *_ = formatter()(found)
    assert bytes(x["ids"][1]).startswith(b"1000")


def test_undamaged_records_train():
    """Without this, all damage could be refused for another reason."""
    assert_trains(formatter()(records()))
