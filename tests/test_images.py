"""Images of every kind are read alike, and broken ones raise an error."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from keras_betakd.data import load_image, neutralize_image_marks

WHITES = {
    "1": 1,
    "L": 255,
    "LA": (255, 255),
    "RGB": (255, 255, 255),
    "RGBA": (255, 255, 255, 255),
    "RGBX": (255, 255, 255, 255),
    "CMYK": (0, 0, 0, 0),
    "YCbCr": (255, 128, 128),
    "I;16": 65535,
    "I;16B": 65535,
    "I": 65535,
    "F": 1.0,
}


def encode(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", WHITES)
def test_white_stays_white_in_every_mode(mode):
    # Reported bug: only RGBA was converted, and a CMYK file broke a long run; a
    # plain `convert("RGB")` of 16 bit grey clips nearly everything to white.
    result = load_image(Image.new(mode, (3, 2), WHITES[mode]))
    assert result.shape == (2, 3, 3)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, 255)


def test_white_of_a_palette_stays_white():
    white = Image.new("RGB", (3, 2), "white")
    np.testing.assert_array_equal(load_image(white.quantize()), 255)


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_middle_grey_of_16_bit_is_not_clipped(mode):
    image = Image.new(mode, (2, 1), 32896)  # 128 * 257
    image.putpixel((1, 0), 65535)
    np.testing.assert_array_equal(load_image(image)[0, :, 0], [128, 255])


def test_16_bit_png_file():
    values = np.array([[0, 257, 65535]], "uint16")
    data = encode(Image.fromarray(values))
    np.testing.assert_array_equal(load_image(data)[0, :, 0], [0, 1, 255])


def test_transparency_is_laid_over_white():
    # Black at alpha 0, 51 and 255 over white: 255 * (1 - alpha / 255).
    pixels = np.array([[[0, 0, 0, 0], [0, 0, 0, 51], [0, 0, 0, 255]]], "uint8")
    image = Image.fromarray(pixels)
    expected = [255, 204, 0]
    np.testing.assert_array_equal(load_image(image)[0, :, 1], expected)
    np.testing.assert_array_equal(load_image(pixels)[0, :, 1], expected)
    np.testing.assert_array_equal(load_image(image.convert("LA"))[0, :, 1], expected)


def test_transparent_palette_is_laid_over_white():
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 200, 10, 20])
    image.putpixel((1, 0), 1)
    data = encode(image, transparency=0)
    np.testing.assert_array_equal(load_image(data), [[[255] * 3, [200, 10, 20]]])


def test_orientation_from_the_camera_is_applied():
    image = Image.new("RGB", (3, 1), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # Shown after a quarter turn clockwise.
    result = load_image(encode(image, exif=exif))
    np.testing.assert_array_equal(result[:, 0, 0], [255, 0, 0])


def test_the_same_image_from_every_source(tmp_path):
    # Reported bug: a loader expected an image and got a dict.
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 3), dtype="uint8")
    data = encode(Image.fromarray(pixels))
    path = tmp_path / "a.png"
    path.write_bytes(data)
    sources = [
        pixels,
        pixels / 255.0,
        pixels.astype("float32"),
        data,
        path,
        str(path),
        Image.open(path),
        {"bytes": data, "path": "elsewhere.png"},
        {"bytes": None, "path": str(path)},
    ]
    for source in sources:
        np.testing.assert_array_equal(load_image(source), pixels)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1)])
def test_grey_arrays(shape):
    result = load_image(np.full(shape, 7, "uint8"))
    np.testing.assert_array_equal(result, np.full((2, 3, 3), 7))


def test_result_is_a_copy():
    pixels = np.zeros((2, 2, 3), "uint8")
    load_image(pixels)[:] = 9
    assert pixels.max() == 0


def test_missing_file_is_named(tmp_path):
    path = str(tmp_path / "no.png")
    with pytest.raises(FileNotFoundError, match="no.png"):
        load_image(path)
    with pytest.raises(FileNotFoundError, match="no.png"):
        load_image({"bytes": None, "path": path})
    with pytest.raises(ValueError, match="regular file"):
        load_image(tmp_path)


def test_truncated_file_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype="uint8")
    path = tmp_path / "cut.png"
    path.write_bytes(encode(Image.fromarray(noise))[:1000])
    with pytest.raises(ValueError, match="cut.png"):
        load_image(path)


@pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n"])
def test_bytes_that_are_no_image(data):
    with pytest.raises(ValueError, match=f"Received: {len(data)} bytes"):
        load_image(data)


@pytest.mark.parametrize(
    "source, message",
    [
        (np.zeros((3, 4, 5), "uint8"), "shape \\(3, 4, 5\\)"),
        (np.zeros((0, 4, 3), "uint8"), "at least one pixel"),
        (np.array([[np.nan]]), "finite"),
        (np.array([[-1.0]]), "from -1.0"),
        (np.array([["a"]]), "numbers"),
        ({"bytes": None, "path": None}, "not None"),
        ({"url": "x"}, "url"),
    ],
)
def test_impossible_sources(source, message):
    with pytest.raises(ValueError, match=message):
        load_image(source)


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="list"):
        load_image([[1, 2], [3, 4]])


def test_decompression_bomb_is_an_error(monkeypatch):
    # Pillow only warns between one and two times its limit, and decodes.
    data = encode(Image.new("RGB", (15, 10)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="150 pixels"):
            load_image(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)
    with pytest.raises(ValueError, match="decompression bomb"):
        load_image(data)


@pytest.mark.parametrize(
    "mark",
    [
        "<image>",
        "<Image>",
        "<img>",
        "</img>",
        "<start_of_image>",
        "<end_of_image>",
        "<image_soft_token>",
        "<|image|>",
        "<|image>",
        "<|image_pad|>",
        "<|vision_start|>",
        "<|video_pad|>",
        "<|im_end|>",
        "<|eot_id|>",
        "<start_of_turn>",
        "[IMG]",
    ],
)
def test_marks_in_user_text_lose_their_meaning(mark):
    # Reported bug: a literal mark in a question was counted as one more image.
    result = neutralize_image_marks(f"What is {mark}{mark}?")
    assert mark not in result
    assert result == f"What is {mark[0]} {mark[1:]}{mark[0]} {mark[1:]}?"


@pytest.mark.parametrize(
    "text", ["a < b and image > c", "x<y>z", "[1, 2]", "<b>bold</b>", "|x| <|y|", ""]
)
def test_other_brackets_are_left_alone(text):
    assert neutralize_image_marks(text) == text
