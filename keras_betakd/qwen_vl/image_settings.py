"""Reads how a published checkpoint resizes and normalises its images."""

import dataclasses
import pathlib

from keras_betakd.qwen_vl.configurations import ARCHITECTURE
from keras_betakd.vision_language.fields import Fields, is_finite, read_object

# Fewest and most tokens of an image, where the published limits allow more: those that
# Qwen's own example suggests. The published ones are 4 and 16384.
_TOKENS = 256, 1280
_RESCALE = 1 / 255
_BICUBIC = 3  # Pillow's number


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """What a checkpoint's preprocessor_config.json says.

    Attributes:
        min_pixels, max_pixels: the fewest and the most pixels of a resized image.
        mean, std: three floats each, of values from 0 to 1.
        factor: pixels along a side of an image token.
    """

    min_pixels: int
    max_pixels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    factor: int

    def limits(self, min_pixels=None, max_pixels=None):
        """The limits to use: those given, else the published ones up to 1280 tokens.

        Where the published ones allow larger images, they are 256 to 1280 tokens. A
        lower limit that would exceed the upper one gives way to the published one.

        Returns:
            `(min_pixels, max_pixels)`.
        """
        lowest, highest = (count * self.factor**2 for count in _TOKENS)
        if self.max_pixels <= highest:
            lowest, highest = self.min_pixels, self.max_pixels
        if max_pixels is None:
            max_pixels = highest
        if min_pixels is None:
            min_pixels = lowest if lowest <= max_pixels else self.min_pixels
        return min_pixels, max_pixels


def read_image_settings(folder, arguments):
    """The `ImageSettings` of a checkpoint's folder.

    Args:
        folder: path of the folder. Its preprocessor_config.json has the limits as
            `min_pixels` and `max_pixels`, or in `size`, where the two edges are areas;
            where both are there, the former count. Newer folders have the settings in
            processor_config.json instead.
        arguments: dict, those of `QwenVLBackbone`, which must be for the same patches.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or asks for images that cannot be made.
    """
    fields = _fields(pathlib.Path(folder))
    for key, name in (
        ("patch_size", "patch_size"),
        ("merge_size", "spatial_merge_size"),
        ("temporal_patch_size", "temporal_patch_size"),
    ):
        if fields.get(key, arguments[name]) != arguments[name]:
            raise fields.error(key, f"{arguments[name]}, as in config.json")
    for key in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
        fields.expect(key, None, True)
    for key in ("do_center_crop", "do_pad"):
        fields.expect(key, None, False)
    fields.expect("resample", None, _BICUBIC)
    factor = fields.number("rescale_factor", _RESCALE)
    if abs(factor - _RESCALE) > 1e-6:
        raise fields.error("rescale_factor", "1 / 255")
    side = arguments["patch_size"] * arguments["spatial_merge_size"]
    return ImageSettings(
        *_published_limits(fields, side),
        mean=_three(fields, "image_mean", "0 to 1", lambda value: 0 <= value <= 1),
        std=_three(fields, "image_std", "above 0", lambda value: 0 < value <= 1),
        factor=side,
    )


def _fields(folder):
    path, newer = (
        folder / f"{name}_config.json" for name in ("preprocessor", "processor")
    )
    if not path.exists() and newer.exists():
        fields = Fields(read_object(newer), f"'{newer}'", ARCHITECTURE)
        if "image_processor" in fields:
            return fields.section("image_processor")
    return Fields(read_object(path), f"'{path}'", ARCHITECTURE)


def _published_limits(fields, side):
    size = fields
    if fields.get("size") is not None:
        size = fields.section("size")
    found = []
    for key, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        places = [(fields, key), (size, edge), (size, key)]
        holder, name = next(
            (place for place in places if place[0].get(place[1]) is not None), places[0]
        )
        if holder.get(name) is None:
            raise fields.error(key, f"a number of pixels, here or as {edge} of size")
        found.append(holder.size(name))
    lowest, highest = found
    if lowest > highest or highest < side**2:
        raise ValueError(
            f"{fields.source} has limits of no image. Expected: at most max_pixels "
            f"(longest_edge) for min_pixels (shortest_edge), and for that {side**2}, "
            f"an image token's, at least. Received: {lowest} to {highest}. Download "
            "the file again, from where the checkpoint was published."
        )
    return lowest, highest


def _three(fields, key, wanted, is_right):
    values = fields.get(key)
    if not (
        isinstance(values, list)
        and len(values) == 3
        and all(is_finite(value) and is_right(value) for value in values)
    ):
        raise fields.error(key, f"three numbers, {wanted}")
    return tuple(values)
