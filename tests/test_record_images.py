"""One rule for the images of raw records, by which way ever they come in."""

import io

import jax.numpy
import numpy as np
import pytest
import tensorflow as tf
import torch
from PIL import Image
from tiny_families import FAMILIES, VISION
from tiny_models import random_image, tiny_gemma3, vqa_records

from keras_betakd import DistillationPreprocessor
from keras_betakd.data import load_image
from keras_betakd.preprocessing import model_inputs
from keras_betakd.preprocessing.record_images import images_by_record

RGB = random_image(0, 8, 6)
GREY = RGB[..., :1]
NAMES = ["'a'", "'b'"]


def png(image=RGB):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def read(image):
    """The one image of the second of two records."""
    first, second = images_by_record([None, image], 2, NAMES)
    assert first == [] and len(second) == 1
    assert second[0].dtype == np.uint8 and second[0].ndim == 3
    return second[0]


EQUAL = {  # each is this image, up to rounding
    "uint8": RGB,
    "float32 0..1": RGB / np.float32(255),
    "float64 0..1": RGB / 255,
    "float32 0..255": RGB.astype("float32"),
    "uint16": RGB.astype("uint16") * 257,
    "int32": RGB.astype("int32"),
    "int64": RGB.astype("int64"),
    "alpha": np.dstack([RGB, np.full((8, 6), 255, "uint8")]),
    "pillow": Image.fromarray(RGB),
    "bytes": png(),
    "dict": {"bytes": png(), "path": None},
    "list": [RGB],
    "one of one": RGB[None],
    "torch": torch.tensor(RGB),
    "torch float": torch.tensor(RGB / np.float32(255), requires_grad=True),
    "torch bfloat16": torch.tensor(RGB).to(torch.bfloat16),
    "jax": jax.numpy.asarray(RGB),
    "jax bfloat16": jax.numpy.asarray(RGB, "bfloat16"),
    "tensorflow": tf.constant(RGB),
    "tensorflow bfloat16": tf.constant(RGB, tf.bfloat16),
    "read-only": np.broadcast_to(RGB, RGB.shape),
}


@pytest.mark.parametrize("kind", EQUAL)
def test_one_image_in_every_form(kind):
    # Floats from 0 to 1 were black, uint16 far too bright, and so on, in silence.
    tolerance = 1 if "bfloat16" in kind else 0
    np.testing.assert_allclose(read(EQUAL[kind]), RGB, atol=tolerance)


def test_uint8_is_not_copied():
    assert read(RGB) is RGB


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"])
def test_pillow_modes_are_read_as_by_load_image(mode):
    image = Image.fromarray(RGB).convert("L" if mode in "I;16F" else "RGB")
    image = image.convert(mode)
    np.testing.assert_array_equal(read(image), load_image(image))


def test_the_orientation_of_a_camera_is_applied():
    image = Image.fromarray(RGB)
    image.getexif()[0x0112] = 6
    np.testing.assert_array_equal(read(image), np.rot90(RGB, -1))


def test_grey_and_bool():
    for image in (GREY, GREY[..., 0], Image.fromarray(GREY[..., 0])):
        np.testing.assert_array_equal(read(image), np.repeat(GREY, 3, -1))
    np.testing.assert_array_equal(read(RGB > 127), (RGB > 127) * np.uint8(255))


def test_a_path(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png())
    for source in (path, str(path), np.array([str(path)])):
        np.testing.assert_array_equal(read(source), RGB)
    with pytest.raises(FileNotFoundError, match="Record 'b': .*no image file"):
        read("no.png")


def test_the_type_of_integers_decides_not_their_values():
    # A dark image of 16 bits was read as one of 8, and looked as bright as day.
    dark = np.full((4, 6, 3), 200, "uint16")
    assert read(dark).max() == 1
    assert read(dark.astype("int32")).max() == 200


def test_a_batch_is_in_one_range():
    # Else a black image with a little noise, 0..255, would be white beside the others.
    batch = np.stack([np.full((8, 6, 3), 1), RGB]).astype("float32")
    first, second = images_by_record(batch, 2, NAMES)
    assert first[0].max() == 1
    np.testing.assert_array_equal(second[0], RGB)
    np.testing.assert_array_equal(
        images_by_record(torch.tensor(batch / 255), 2, NAMES), [first, second]
    )


def test_a_batch_of_two_ranges_is_refused():
    mixed = np.stack([RGB, RGB / 255])
    with pytest.raises(ValueError, match="'b': its image seems to have values in 0..1"):
        images_by_record(mixed, 2, NAMES)
    with pytest.raises(ValueError, match="'b': its image seems to have values in 0..1"):
        images_by_record([RGB, mixed], 2, NAMES)


@pytest.mark.parametrize("shape", [(2, 8, 6, 3), (2, 1, 8, 6, 3), (2, 2, 8, 6, 3)])
def test_arrays_of_all_images(shape):
    images = np.arange(np.prod(shape)).reshape(shape).astype("uint8")
    found = images_by_record(images, 2, NAMES)
    np.testing.assert_array_equal(np.reshape(found, shape), images)


WRONG = {
    "-1..1": RGB / np.float32(127.5) - 1,
    "NaN": np.full((8, 6, 3), np.nan, "float32"),
    "one NaN": np.where(RGB == RGB.max(), np.nan, RGB),
    "inf": np.full((8, 6, 3), np.inf, "float16"),
    "negative integers": -RGB.astype("int16"),
    "16 bits in int32": RGB.astype("int32") * 257,
    "floats above 255": RGB.astype("float32") * 2,
    "floats a little above 1": RGB / np.float32(255) * 1.1,
    "complex": RGB.astype("complex64"),
    "text": np.full((8, 6, 3), "a"),
    "objects": RGB.astype("object"),
    "channels first": RGB.transpose(2, 0, 1),
    "5 channels": np.zeros((8, 6, 5), "uint8"),
    "two channels": np.zeros((8, 6, 2), "uint8"),
    "a row": RGB[0],
    "no pixels": np.zeros((0, 6, 3), "uint8"),
    "a number": 3,
    "a NaN of a table": float("nan"),
    "a NumPy NaN": np.float64("nan"),
    "nested lists": RGB.tolist(),
    "no image file": b"abc",
    "empty dict": {},
    "None in a list": [None],
}


@pytest.mark.parametrize("kind", WRONG)
def test_other_images_are_refused_by_the_record(kind):
    with pytest.raises(ValueError, match="^Record 'b': "):
        images_by_record([RGB, WRONG[kind]], 2, NAMES)


@pytest.mark.parametrize("kind", ["-1..1", "NaN", "floats above 255"])
def test_a_wrong_image_of_a_batch_is_named(kind):
    batch = np.stack([RGB.astype("float32"), WRONG[kind]])
    with pytest.raises(ValueError, match="^Record 'b': The values"):
        images_by_record(batch, 2, NAMES)


def test_the_place_of_one_of_several():
    with pytest.raises(ValueError, match="^Record 'b': image 2 of 3: "):
        images_by_record([[], [RGB, None, RGB]], 2, NAMES)


@pytest.mark.parametrize(
    "images, message",
    [
        ([RGB], "one entry for each of the 2 prompts"),
        (RGB[:2], "which is one image"),
        ("a.png", "must be a list.*Received: str"),
        ({"bytes": b""}, "must be a list.*Received: dict"),
        (Image.fromarray(RGB), "must be a list"),
    ],
    ids=["too few", "one array", "path", "dict", "pillow"],
)
def test_what_is_not_one_entry_for_each_record(images, message):
    with pytest.raises(ValueError, match=message):
        images_by_record(images, 2, NAMES)


@pytest.mark.parametrize("family", VISION)
def test_every_family_sees_the_same_image(family):
    preprocessor = FAMILIES[family]().preprocessor
    image = random_image(1)
    kinds = [image, image / np.float32(255), image.astype("uint16") * 257]
    pair = DistillationPreprocessor(preprocessor, preprocessor, 8)
    records = {"prompts": ["<image>\nwhat color"], "responses": ["red"]}
    seen = [pair({**records, "images": [[kind]]})[0]["student"] for kind in kinds]
    for name, value in seen[0].items():
        for other in seen[1:]:
            np.testing.assert_array_equal(value, other[name], err_msg=name)


@pytest.mark.backends
def test_float_batches_of_a_pipeline_are_those_of_uint8():
    preprocessor = tiny_gemma3().preprocessor
    records = vqa_records(2)
    expected = model_inputs(preprocessor, records)["images"]
    for dtype in ("float32", "int32"):
        images = tf.cast(tf.stack([i[0] for i in records["images"]]), dtype)
        found = model_inputs(preprocessor, {**records, "images": images})["images"]
        np.testing.assert_array_equal(found, expected)
