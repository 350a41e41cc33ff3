"""Converts a checkpoint's config.json to the arguments of `MobileVLMBackbone`."""

import json
import pathlib

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
    path = pathlib.Path(folder) / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"There is no '{path}'. Give a folder that holds a checkpoint as it was "
            "published."
        ) from None
    except ValueError as error:
        raise ValueError(
            f"'{path}' is damaged: it should be a json file. Received: {error}"
        ) from error


def backbone_arguments(config, tower=None):
    """The arguments of `MobileVLMBackbone`, as a dict.

    Args:
        config: dict, the config.json of MobileVLM V2, of the original LLaVA, or of
            Hugging Face's port of it.
        tower: dict, the config.json of CLIP. By default that in `config`: a
            `vision_config`, a known name, or a folder.

    Returns:
        Dict of arguments.

    Raises:
        ValueError: a setting needs another architecture, or the tower is not known, or
            a setting is missing.
    """
    is_port = "text_config" in config
    text = {**_LLAMA_DEFAULTS, **config["text_config"]} if is_port else config
    _check_supported(config, text)
    tower = _tower_config(config) if tower is None else tower
    tower = {**_CLIP_DEFAULTS, **tower.get("vision_config", tower)}
    try:
        heads = text["num_attention_heads"]
        return {
            "vocabulary_size": text["vocab_size"],
            "num_layers": text["num_hidden_layers"],
            "num_query_heads": heads,
            "num_key_value_heads": text.get("num_key_value_heads") or heads,
            "hidden_dim": text["hidden_size"],
            "intermediate_dim": text["intermediate_size"],
            "rope_max_wavelength": text.get("rope_theta") or 10000,
            "layer_norm_epsilon": text["rms_norm_eps"],
            "vision_num_layers": tower["num_hidden_layers"],
            "vision_num_heads": tower["num_attention_heads"],
            "vision_hidden_dim": tower["hidden_size"],
            "vision_intermediate_dim": tower["intermediate_size"],
            "image_size": tower["image_size"],
            "patch_size": tower["patch_size"],
            "vision_feature_layer": config.get(
                "vision_feature_layer" if is_port else "mm_vision_select_layer", -2
            ),
            "projector_type": _projector_type(config, is_port),
        }
    except KeyError as error:
        raise ValueError(
            f"The config.json has no {error}, which MobileVLM V2 and LLaVA-1.5 are "
            "published with; a language model that has never seen needs a "
            f"`new_projector`. Received: keys={sorted(config)}"
        ) from error


def image_aspect_ratio(config):
    """The `aspect_ratio` of `MobileVLMImageConverter`.

    Hugging Face's port crops images where the original pads them.
    """
    kind = config.get("image_aspect_ratio")
    if kind is not None and "anyres" in kind:
        raise ValueError(
            "Images in several tiles (image_aspect_ratio='anyres', LLaVA-1.6) are "
            "another architecture. Expected 'pad' or 'square'."
        )
    return "pad" if kind == "pad" else "crop"


def _projector_type(config, is_port):
    if not is_port:
        return config["mm_projector_type"]
    return f"mlp2x_{config.get('projector_hidden_act', 'gelu')}"


def _tower_config(config):
    if "vision_config" in config:
        return config["vision_config"]
    name = config.get("mm_vision_tower") or ""
    known = _TOWERS.get(name.rstrip("/").split("/")[-1])
    if known is not None:
        return known
    if name and pathlib.Path(name).is_dir():
        return read_config(name)
    raise ValueError(
        "The sizes of the vision tower are not known. Give the folder of its CLIP "
        f"model as `vision_tower`. Known by name: {sorted(_TOWERS)}. Received: "
        f"mm_vision_tower={name!r}"
    )


def _check_supported(config, text):
    expected = {
        "hidden_act": (text, ("silu",)),
        "rope_scaling": (text, (None,)),
        "tie_word_embeddings": (text, (False,)),
        "attention_bias": (text, (False,)),
        "mm_use_im_start_end": (config, (False,)),
        "mm_vision_select_feature": (config, ("patch",)),
        "vision_feature_select_strategy": (config, ("default",)),
    }
    for key, (source, values) in expected.items():
        if key in source and source[key] not in values:
            raise ValueError(
                f"A checkpoint with {key}={source[key]!r} is of another architecture "
                f"than MobileVLM V2 and LLaVA-1.5. Expected: {values[0]!r}"
            )
