"""Pictures of Qwen2-VL, 2.5-VL and 3-VL against numbers of their published code."""

import functools
import json
import pathlib

import keras
import keras_hub
import numpy as np
import pytest
from marks import kept

from keras_betakd.data import load_image
from keras_betakd.preprocessing.qwen_images import patches_of, smart_size
from keras_betakd.qwen_vl import QwenVLImageConverter

FOLDER = pathlib.Path(__file__).parent / "golden" / "qwen_vl"
SIZES = json.loads((FOLDER / "smart_resize.json").read_text())
LIMITS = {
    "q25": {"min_pixels": 3136, "max_pixels": 12845056},
    "q25_max5000": {"min_pixels": 3136, "max_pixels": 5000},
    "q3": {
        **{"patch_size": 16, "min_pixels": 1024, "max_pixels": 16777216},
        **{"mean": [0.5] * 3, "std": [0.5] * 3},
    },
}


@functools.cache
def golden():
    return dict(np.load(FOLDER / "preprocess.npz"))


@pytest.mark.parametrize("limits", [k for k in SIZES if k not in ("errors", "halves")])
def test_pictures_get_the_published_sizes(limits):
    case = SIZES[limits]
    args = case["factor"], case["min_pixels"], case["max_pixels"]
    assert len(case["height_width_to"]) > 30
    for (height, width), expected in case["height_width_to"]:
        assert list(smart_size(height, width, *args)) == expected


def test_halves_become_the_even_multiple():
    for (height, width), expected in SIZES["halves"]:
        assert list(smart_size(height, width, 28, 1, 12845056)) == expected


def test_too_long_pictures_are_refused():
    for height, width in SIZES["errors"]:
        with pytest.raises(ValueError, match=rf"200 times .* {height} x {width} pix"):
            smart_size(height, width, 28, 3136, 12845056)
    converter = QwenVLImageConverter()
    with pytest.raises(ValueError, match="Crop it, or leave the record out"):
        converter(np.zeros((2, 402, 3), "uint8"))


@pytest.mark.backends
@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("picture", kept(["up", "down", "wide"], "down"))
def test_pixels_are_the_published_ones(picture, limits):
    image = golden()[f"{picture}/image"]
    converter = QwenVLImageConverter(**LIMITS[limits])
    found = converter(image)
    patches, grid = found["patches"], golden()[f"{picture}/{limits}/grid_thw"]
    assert patches.dtype == "float32"
    assert found["grid_thw"].tolist() == grid.tolist()
    assert converter.grid(*image.shape[:2]) == tuple(grid)
    name = f"{picture}/{limits}/pixel_values"
    if name in golden():
        np.testing.assert_allclose(patches, golden()[name], rtol=0, atol=1e-5)
        return
    assert patches.shape == (grid.prod(), golden()[f"{name}_first_last"].shape[1])
    rows = patches[[0, 1, 2, 3, -1]]
    np.testing.assert_allclose(rows, golden()[f"{name}_first_last"], rtol=0, atol=1e-5)


def test_transparent_pictures_are_blended_with_white():
    np.testing.assert_array_equal(
        load_image(golden()["rgba/image"]), golden()["rgba/rgb_on_white"]
    )
    patches = QwenVLImageConverter(**LIMITS["q25"])(golden()["rgba/image"])["patches"]
    expected = golden()["rgba/first_patch"]
    np.testing.assert_allclose(patches[0], expected, rtol=0, atol=1e-5)


def test_patches_stand_in_blocks():
    """Upper left, upper right, lower left, lower right; then the block to the right."""
    place = np.arange(4 * 6).reshape(4, 6, 1)
    assert patches_of(place, 1, 2)[:, 0].tolist() == [
        *(0, 1, 6, 7),
        *(2, 3, 8, 9),
        *(4, 5, 10, 11),
        *(12, 13, 18, 19),
        *(14, 15, 20, 21),
        *(16, 17, 22, 23),
    ]
    channels = np.stack([place[..., 0], -place[..., 0]], axis=-1)
    assert patches_of(channels, 2, 1)[0].tolist() == [0, 1, 6, 7, 0, -1, -6, -7]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"min_pixels": 5000, "max_pixels": 4000}, "no size would be within"),
        ({"min_pixels": 1, "max_pixels": 783}, "must be 784 or more"),
        ({"min_pixels": 0}, "1 or more. Received: min_pixels=0"),
        ({"max_pixels": 1e6}, "whole number of pixels"),
        ({"patch_size": 0}, "`patch_size` must be a whole number"),
        ({"std": (1.0, 0.0, 1.0)}, "those of `std` above 0"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        QwenVLImageConverter(**settings)


def test_a_converter_is_saved_with_all_its_settings(tmp_path):
    changed = {**LIMITS["q3"], "spatial_merge_size": 1, "name": "pictures"}
    converter = QwenVLImageConverter(**changed)
    converter.save_to_preset(str(tmp_path))
    saved = json.loads((tmp_path / "image_converter.json").read_text())
    loaded = keras.saving.deserialize_keras_object(saved)
    assert isinstance(loaded, QwenVLImageConverter)
    assert isinstance(loaded, keras_hub.layers.ImageConverter)
    assert loaded.get_config() == converter.get_config()
    image = golden()["up/image"]
    np.testing.assert_array_equal(loaded(image)["patches"], converter(image)["patches"])
