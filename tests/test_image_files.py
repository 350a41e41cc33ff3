"""Files that others made: named formats, regular files, and memory in proportion."""

import os
import stat
import tracemalloc

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image
from test_images import encode

from keras_betakd.data import load_image, pixels
from keras_betakd.data.images import FORMATS, check_image

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n%%EOF\n"
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype="uint8")


@pytest.fixture
def interpreter(tmp_path, monkeypatch):
    """A stand-in for Ghostscript; the path of the file that it leaves."""
    program, left = tmp_path / "gs", tmp_path / "started"
    program.write_text(f"#!/bin/sh\ntouch {left}\nexit 1\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # Pillow keeps what it found
    return left


def test_postscript_is_not_given_to_an_interpreter(interpreter, tmp_path):
    path = tmp_path / "a.png"  # whatever its name says
    path.write_bytes(EPS)
    for source in (EPS, path, {"bytes": EPS, "path": None}):
        with pytest.raises(ValueError, match="Could not read this image.*other than"):
            load_image(source)
    for check in (load_image, check_image):
        with Image.open(path) as image, pytest.raises(ValueError, match="PostScript"):
            check(image)
    assert not interpreter.exists()


@pytest.mark.parametrize("name", FORMATS)
def test_every_named_format_is_read(name):
    if name not in (Image.init(), Image.SAVE)[1]:
        pytest.skip(f"this Pillow does not write {name}")
    lossy = name in ("JPEG", "MPO", "WEBP", "GIF", "AVIF", "JPEG2000")
    options = {"sizes": [(30, 20)]} if name == "ICO" else {}
    found = load_image(encode(Image.fromarray(PIXELS), name, **options))
    assert found.shape == PIXELS.shape
    if not lossy:
        np.testing.assert_array_equal(found, PIXELS)


@pytest.mark.parametrize("name", ["PDF", "PCX", "SGI", "IM", "SPIDER"])
def test_other_formats_are_refused(name):
    image = Image.fromarray(PIXELS).convert("F" if name == "SPIDER" else "RGB")
    with pytest.raises(ValueError, match="a format other than PNG, JPEG"):
        load_image(encode(image, name))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_only_regular_files_are_opened(tmp_path):
    # A named pipe hung, a device was read without end.
    pipe, link = tmp_path / "pipe.png", tmp_path / "link.png"
    os.mkfifo(pipe)
    link.symlink_to("/dev/zero")
    for path in (pipe, link, tmp_path):
        for source in (path, str(path), {"path": str(path), "bytes": None}):
            with pytest.raises(ValueError, match="must lead to a regular file"):
                load_image(source)


def test_any_error_of_a_damaged_file_is_one_error(monkeypatch):
    """Pillow raises nearly any error of damaged files."""

    def fail(*_):
        raise ZeroDivisionError("damaged")

    monkeypatch.setattr(pixels, "_blended", fail)
    with pytest.raises(ValueError, match="Received: .* bytes of image data"):
        load_image(encode(Image.fromarray(PIXELS)))


# --- The same numbers, with less memory ---


def test_transparency_in_whole_numbers_is_what_it_was_in_float64():
    color, alpha = np.mgrid[:256, :256].astype("uint8")
    array = np.dstack([color, color, color, alpha])
    share = alpha.astype("float64") / 255
    expected = np.rint(color * share + 255 * (1 - share))
    for source in (array, Image.fromarray(array)):
        np.testing.assert_array_equal(load_image(source)[..., 1], expected)


def test_all_values_of_16_bits():
    values = np.arange(65536, dtype="uint16").reshape(256, 256)
    expected = np.rint(values.astype("float64") * (255 / 65535))
    for source in (values, Image.fromarray(values), values.astype(">u2")):
        np.testing.assert_array_equal(load_image(source)[..., 2], expected)


MODES = ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "LAB"]
MODES += ["HSV", "I", "I;16", "F"]


@pytest.mark.parametrize("mode", MODES)
def test_strips_are_the_whole(mode, monkeypatch):
    base = Image.fromarray(np.dstack([PIXELS, PIXELS[..., :1]]))
    if mode in ("I", "I;16", "F"):
        base = Image.fromarray(PIXELS[..., 0].astype("uint16") * 257)
    for step in {"La": ["LA"], "PA": ["P"], "I;16": []}.get(mode, []):
        base = base.convert(step)
    if mode in ("I", "F"):
        base = Image.fromarray(np.asarray(base).astype({"I": "i4", "F": "f4"}[mode]))
        base = base.point(lambda value: value / 257) if mode == "F" else base
    elif mode != base.mode:
        base = base.convert("RGB") if mode in ("LAB", "HSV", "CMYK", "YCbCr") else base
        base = base.convert(mode)
    whole = load_image(base)
    monkeypatch.setattr(pixels, "STRIP_PIXELS", 90)  # three rows
    np.testing.assert_array_equal(load_image(base), whole)
    assert whole.std() > 1


SIDE = 1000
LARGE = {
    "alpha": lambda: np.zeros((SIDE, SIDE, 4), "uint8"),
    "16 bits": lambda: np.zeros((SIDE, SIDE, 3), "uint16"),
    "floats": lambda: np.zeros((SIDE, SIDE, 3), "float32"),
    "pillow RGBA": lambda: Image.new("RGBA", (SIDE, SIDE)),
    "pillow palette": lambda: Image.new("P", (SIDE, SIDE)),
    "pillow 16 bits": lambda: Image.new("I;16", (SIDE, SIDE)),
}


@pytest.mark.parametrize("kind", LARGE)
def test_memory_is_that_of_the_result(kind, monkeypatch):
    # Transparency was laid over white in float64: 8 GiB for a file of 335 KiB.
    monkeypatch.setattr(pixels, "STRIP_PIXELS", 2**14)
    source = LARGE[kind]()
    load_image(PIXELS)
    tracemalloc.start()
    result = load_image(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.nbytes <= peak < 1.5 * result.nbytes


def test_a_mode_of_32_bits_has_16_of_them():
    image = Image.new("I", (2, 1), 200)
    np.testing.assert_array_equal(load_image(image), 1)  # dark, not 8 bits
    image.putpixel((0, 0), 70000)
    with pytest.raises(ValueError, match=r"mode 'I' must lie in 0..65535.*70000"):
        load_image(image)
