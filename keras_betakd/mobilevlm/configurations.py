"""Converts a checkpoint's config.json to the arguments of `MobileVLMBackbone`."""

import os
import pathlib

from keras_betakd.mobilevlm.projectors import mlp_depth
from keras_betakd.preprocessing.image_inputs import CLIP_MEAN, CLIP_STD
from keras_betakd.vision_language.fields import Fields, is_finite, is_whole, read_object

_ARCHITECTURE = "MobileVLM V2 and LLaVA-1.5"

# The towers that MobileVLM V2 and LLaVA are published with; their config.json only has
# the name.
_LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "patch_size": 14,
}
_TOWERS = {
    "clip-vit-large-patch14-336": {**_LARGE, "image_size": 336},
    "clip-vit-large-patch14": {**_LARGE, "image_size": 224},
}

# Defaults of Hugging Face's classes, which their files leave out.
_LLAMA_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
}
_CLIP_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
}


def read_config(folder):
    """The config.json of a folder, as a dict."""
    return read_object(pathlib.Path(folder) / "config.json")


def backbone_arguments(config, tower=None, source="config.json", tower_source=None):
    """The arguments of `MobileVLMBackbone`, as a dict.

    Args:
        config: dict, the config.json of MobileVLM V2, of the original LLaVA, or of
            Hugging Face's port of it.
        tower: dict, the config.json of CLIP. By default that in `config`: a
            `vision_config`, a known name, or a folder.
        source: names the file of `config` in error messages.
        tower_source: the same for `tower`.

    Returns:
        Dict of arguments.

    Raises:
        ValueError: a setting needs another architecture, is missing, or is of a wrong
            type or out of its range; or the tower is not known.
    """
    config = Fields(config, source, _ARCHITECTURE)
    is_port = "text_config" in config
    text = config.section("text_config", _LLAMA_DEFAULTS) if is_port else config
    _check_supported(config, text)
    vision = _vision_fields(config, tower, tower_source)
    try:
        arguments = {
            **_text_arguments(text),
            **_vision_arguments(vision),
            "projector_type": _projector_type(config, is_port),
        }
    except KeyError as error:
        raise ValueError(
            f"The config.json has no {error}, which {_ARCHITECTURE} are "
            "published with; a language model that has never seen needs a "
            f"`new_projector`. Received: keys={sorted(config.values)} in {source}"
        ) from error
    key = "vision_feature_layer" if is_port else "mm_vision_select_layer"
    layer = config.get(key, -2)
    layers = arguments["vision_num_layers"]
    if not is_whole(layer) or not -layers - 1 <= layer <= layers:
        raise config.error(key, f"a whole number, {-layers - 1} to {layers}")
    return {**arguments, "vision_feature_layer": layer}


def image_aspect_ratio(config, source="config.json"):
    """The `aspect_ratio` of `MobileVLMImageConverter`.

    Hugging Face's port crops images where the original pads them.
    """
    fields = Fields(config, source, _ARCHITECTURE)
    kind = fields.get("image_aspect_ratio", "square")
    if isinstance(kind, str) and "anyres" in kind:
        raise ValueError(
            "Images in several tiles (image_aspect_ratio='anyres', LLaVA-1.6) are "
            "another architecture. Expected 'pad' or 'square'."
        )
    if kind not in ("pad", "square"):
        raise fields.error("image_aspect_ratio", "'pad' or 'square'")
    return "pad" if kind == "pad" else "crop"


def check_image_settings(folder, image_size):
    """Raises if a folder's preprocessor_config.json asks for other images.

    The images are made as MobileVLM V2 and LLaVA-1.5 make them; with other settings
    the model would see what it was not trained on.
    """
    path = pathlib.Path(folder) / "preprocessor_config.json"
    if not path.exists():
        return
    fields = Fields(read_object(path), f"'{path}'", _ARCHITECTURE)
    for key, expected in (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD)):
        if key in fields and not _is_near(fields.get(key), expected):
            raise fields.error(key, f"CLIP's, {list(expected)}")
    for key in ("size", "crop_size"):
        sizes = fields.get(key, image_size)
        sizes = list(sizes.values()) if isinstance(sizes, dict) else [sizes]
        if not sizes or any(not is_whole(s) or s != image_size for s in sizes):
            raise fields.error(key, f"{image_size}, the tower's image_size")


def _is_near(values, expected):
    return (
        isinstance(values, list)
        and len(values) == len(expected)
        and all(
            is_finite(v) and abs(v - e) < 1e-4
            for v, e in zip(values, expected, strict=True)
        )
    )


def _text_arguments(text):
    heads, width = text.size("num_attention_heads"), text.size("hidden_size")
    # Rotary positions turn pairs of numbers.
    if width % (2 * heads):
        expected = "a divisor of half the hidden_size"
        raise text.error("num_attention_heads", f"{expected}, {width} / 2")
    shared = heads
    if text.get("num_key_value_heads") is not None:
        shared = text.size("num_key_value_heads")
    if heads % shared:
        raise text.error("num_key_value_heads", f"a divisor of the {heads} heads")
    text.expect("head_dim", None, width // heads)
    return {
        "vocabulary_size": text.size("vocab_size"),
        "num_layers": text.size("num_hidden_layers"),
        "num_query_heads": heads,
        "num_key_value_heads": shared,
        "hidden_dim": width,
        "intermediate_dim": text.size("intermediate_size"),
        "rope_max_wavelength": _rope_theta(text),
        "layer_norm_epsilon": text.number("rms_norm_eps", below=1),
    }


def _rope_theta(text):
    """The base of the rotary positions, wherever a version of transformers has it."""
    if text.get("rope_parameters") is not None:
        rope = text.section("rope_parameters")
        rope.expect("rope_type", "default")
        return rope.number("rope_theta", 10000)
    return text.number("rope_theta", 10000)


def _vision_arguments(vision):
    width, heads = vision.size("hidden_size"), vision.size("num_attention_heads")
    if width % heads:
        raise vision.error(
            "num_attention_heads", f"a divisor of the hidden_size, {width}"
        )
    size, patch = vision.size("image_size"), vision.size("patch_size")
    if patch > size:
        raise vision.error("patch_size", f"at most the image_size, {size}")
    vision.expect("hidden_act", "quick_gelu")
    vision.expect("layer_norm_eps", 1e-5)
    vision.expect("num_channels", 3)
    return {
        "vision_num_layers": vision.size("num_hidden_layers"),
        "vision_num_heads": heads,
        "vision_hidden_dim": width,
        "vision_intermediate_dim": vision.size("intermediate_size"),
        "image_size": size,
        "patch_size": patch,
    }


def _projector_type(config, is_port):
    if not is_port:
        kind = config.text("mm_projector_type")
    else:
        kind = f"mlp2x_{config.text('projector_hidden_act', 'gelu')}"
    try:
        mlp_depth(kind)
    except ValueError as error:
        raise ValueError(f"{config.source}: {error}") from error
    return kind


def _vision_fields(config, tower, tower_source):
    """The settings of the vision tower, with the defaults of CLIP's own files."""
    if tower is not None:
        source = tower_source or "the config.json of `vision_tower`"
        fields = Fields(tower, source, _ARCHITECTURE)
    elif "vision_config" in config:
        fields = config
    else:
        return Fields(*_named_tower(config), _ARCHITECTURE, _CLIP_DEFAULTS)
    if "vision_config" in fields:
        return fields.section("vision_config", _CLIP_DEFAULTS)
    return Fields(fields.values, fields.source, _ARCHITECTURE, _CLIP_DEFAULTS)


def _named_tower(config):
    """Settings and source of the tower that `mm_vision_tower` names."""
    name = ""
    if config.get("mm_vision_tower") is not None:
        name = config.text("mm_vision_tower")
    known = _TOWERS.get(name.rstrip("/").split("/")[-1])
    if known is not None:
        return known, f"the tower {name!r}"
    if name and os.path.isdir(name):
        found = read_config(name)
        source = f"'{pathlib.Path(name) / 'config.json'}'"
        if "vision_config" not in found:
            return found, source
        section = Fields(found, source, _ARCHITECTURE).section("vision_config")
        return section.values, section.source
    raise ValueError(
        "The sizes of the vision tower are not known. Give the folder of its CLIP "
        f"model as `vision_tower`. Known by name: {sorted(_TOWERS)}. Received: "
        f"mm_vision_tower={name!r} in {config.source}"
    )


def _check_supported(config, text):
    text.expect("hidden_act", "silu")
    text.expect("rope_scaling", None)
    for key in ("tie_word_embeddings", "attention_bias", "mlp_bias"):
        text.expect(key, False)
    config.expect("mm_use_im_start_end", False)
    config.expect("mm_vision_select_feature", "patch")
    config.expect("vision_feature_select_strategy", "default")
