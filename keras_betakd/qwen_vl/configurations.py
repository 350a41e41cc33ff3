"""Converts a checkpoint's config.json to the arguments of `QwenVLBackbone`."""

import math

from keras_betakd.qwen_vl.families import FAMILIES, family_of
from keras_betakd.vision_language.fields import Fields, is_whole, shown

ARCHITECTURE = "Qwen2-VL, Qwen2.5-VL and dense Qwen3-VL"
"""The models that are supported, for error messages."""

# The names of the vision encoders' activations in config.json.
_ACTIVATIONS = {
    "silu": "silu",
    "quick_gelu": "quick_gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
}
# The models' own, which most files leave out.
_VISION_THETA = 10000
_VISION_EPSILON = 1e-6
# Patches along a side of a window. The published models have 8; a window's attention
# takes memory in the fourth power of it.
_WINDOW_SIDES = 64


def backbone_arguments(config, source="config.json"):
    """The arguments of `QwenVLBackbone`, as a dict.

    The settings of the text model are those at the top, in the form that Qwen2-VL and
    Qwen2.5-VL were published in, overlaid by `text_config`, which newer files have;
    those of the rotary positions are `rope_scaling` overlaid by `rope_parameters`.
    Nothing that matters is filled in: the defaults of Hugging Face's classes are not
    those of the published models.

    Args:
        config: dict, the config.json.
        source: names the file in error messages.

    Returns:
        Dict of arguments.

    Raises:
        ValueError: a setting needs another architecture, is missing, or is of a wrong
            type or out of its range.
    """
    config = Fields(config, source, ARCHITECTURE)
    family = _family(config)
    try:
        text, is_tied = _text_fields(config)
        arguments = {
            "family": family,
            **_text_arguments(text, family),
            "tie_word_embeddings": is_tied,
        }
        vision = config.section("vision_config")
        return arguments | _vision_arguments(vision, family, arguments)
    except KeyError as error:
        raise ValueError(
            f"The config.json has no {error}, which {ARCHITECTURE} are published with. "
            "Download it again, from where the checkpoint was published. Received: "
            f"keys={shown(sorted(config.values))} in {source}"
        ) from error


def _family(config):
    family = config.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise ValueError(
            f"{config.source} describes another model. Expected: model_type is one of "
            f"{sorted(FAMILIES)} ({ARCHITECTURE}; no mixtures of experts, no models "
            f"with sound). Received: model_type={shown(family)}"
        )
    config.expect("quantization_config", None)
    return family


def _text_fields(config):
    """The settings of the text model, and whether its LM head is the embedding."""
    own = config
    if "text_config" in config:
        own = config.section("text_config")
    for fields in (config, own):
        fields.expect("tie_word_embeddings", None, False, True)
    is_tied = any(fields.get("tie_word_embeddings") for fields in (config, own))
    values = {**config.values, **own.values}
    return Fields(values, own.source, ARCHITECTURE), is_tied


def _text_arguments(text, family):
    _check_supported(text)
    kind = family_of(family)
    heads, shared = text.size("num_attention_heads"), text.size("num_key_value_heads")
    if heads % shared:
        raise text.error("num_key_value_heads", f"a divisor of the {heads} heads")
    width = text.size("hidden_size")
    if kind.qk_norm:
        text.expect("attention_bias", None, False)
        head_dim = text.size("head_dim")
    else:
        if width % heads:
            raise text.error(
                "num_attention_heads", f"a divisor of the hidden_size, {width}"
            )
        head_dim = width // heads
        text.expect("head_dim", None, head_dim)
    if head_dim % 2:  # rotary positions turn pairs of numbers
        raise text.error("head_dim", f"an even width of a head, not {head_dim}")
    return {
        "vocabulary_size": text.size("vocab_size"),
        "num_layers": text.size("num_hidden_layers"),
        "num_query_heads": heads,
        "num_key_value_heads": shared,
        "head_dim": head_dim,
        "hidden_dim": width,
        "intermediate_dim": text.size("intermediate_size"),
        **_rope_arguments(text, kind, head_dim),
        "layer_norm_epsilon": text.number("rms_norm_eps", below=1),
    }


def _check_supported(text):
    text.expect("hidden_act", None, "silu")
    text.expect("partial_rotary_factor", None, 1, 1.0)
    layers = text.size("num_hidden_layers")
    text.expect("use_sliding_window", None, False, True)
    first = text.get("max_window_layers")
    # The layers from that number on have windows.
    is_windowed = not is_whole(first) or first < layers
    if text.get("use_sliding_window") and is_windowed:
        text.expect("use_sliding_window", None, False)
    types = text.get("layer_types", [])
    if not isinstance(types, list) or any(kind != "full_attention" for kind in types):
        raise text.error("layer_types", "a list of 'full_attention' alone")


def _rope_arguments(text, kind, head_dim):
    """The base and the sections of the rotary positions with three axes."""
    values = {}
    for key in ("rope_scaling", "rope_parameters"):
        if text.get(key) is not None:
            values |= text.section(key).values
    rope = Fields(values, f"{text.source}, rope_scaling", ARCHITECTURE)
    for key in ("type", "rope_type"):
        rope.expect(key, None, "mrope", "default")
    rope.expect("partial_rotary_factor", None, 1, 1.0)
    rope.expect("mrope_interleaved", None, kind.interleaved_axes)
    sections, pairs = rope.values["mrope_section"], head_dim // 2
    if not (
        isinstance(sections, list)
        and len(sections) == 3
        and all(is_whole(size) and size >= 0 for size in sections)
        and sum(sections) == pairs
    ):
        raise rope.error(
            "mrope_section",
            f"three whole numbers that add up to half the width of a head, {pairs}",
        )
    holder = rope if rope.get("rope_theta") is not None else text
    theta = holder.number("rope_theta")
    if theta < 1:
        raise holder.error("rope_theta", "a finite number, 1 or more")
    return {"rope_max_wavelength": theta, "rope_sections": tuple(sections)}


def _vision_arguments(vision, family, text_arguments):
    _check_vision(vision, family)
    width, inner = _vision_widths(vision, family, text_arguments["hidden_dim"])
    heads = vision.size("num_heads")
    if width % (4 * heads):  # pairs of numbers turn on two axes
        raise vision.error("num_heads", f"a divisor of a quarter of the width, {width}")
    sizes = {
        "vision_num_layers": vision.size("depth"),
        "vision_num_heads": heads,
        "vision_hidden_dim": width,
        "vision_intermediate_dim": inner,
        "patch_size": vision.size("patch_size"),
        "temporal_patch_size": vision.size("temporal_patch_size"),
        "spatial_merge_size": vision.size("spatial_merge_size"),
    }
    vision.expect("spatial_patch_size", None, sizes["patch_size"])
    kind = family_of(family)
    if kind.windows:
        sizes |= _window_arguments(vision, sizes)
    if kind.position_table:
        sizes |= _table_arguments(vision, sizes, text_arguments["num_layers"])
    return sizes


def _check_vision(vision, family):
    activation = _ACTIVATIONS[family_of(family).vision_activation]
    vision.expect("hidden_act", None, activation)
    for key in ("in_chans", "in_channels"):
        vision.expect(key, None, 3)
    for key in ("rms_norm_eps", "layer_norm_eps"):
        vision.expect(key, None, _VISION_EPSILON)
    rope = vision
    if vision.get("rope_parameters") is not None:
        rope = vision.section("rope_parameters")
        rope.expect("rope_type", None, "axial", "default")
    rope.expect("rope_theta", None, _VISION_THETA, float(_VISION_THETA))


def _vision_widths(vision, family, text_width):
    """The widths of the vision encoder's blocks and of their feed-forward layers."""
    # Qwen2-VL has other names: its `hidden_size` is the width that is put out.
    is_first = family == "qwen2_vl"
    output = "hidden_size" if is_first else "out_hidden_size"
    if vision.size(output) != text_width:
        raise vision.error(output, f"the text model's hidden_size, {text_width}")
    if not is_first:
        return vision.size("hidden_size"), vision.size("intermediate_size")
    width = vision.size("embed_dim")
    ratio = vision.number("mlp_ratio", 4, below=1000)
    inner = width * ratio if is_whole(ratio) else math.floor(min(width, 2**53) * ratio)
    if inner < 1:
        raise vision.error("mlp_ratio", "widths of at least 1")
    return width, inner


def _window_arguments(vision, sizes):
    patch = sizes["patch_size"]
    least, most = patch * sizes["spatial_merge_size"], patch * _WINDOW_SIDES
    window = vision.size("window_size")
    if not least <= window <= most:
        raise vision.error("window_size", f"a number of pixels, {least} to {most}")
    key = "fullatt_block_indexes"
    blocks, layers = _block_numbers(vision, key), sizes["vision_num_layers"]
    if any(i >= layers for i in blocks):
        raise vision.error(key, f"numbers below {layers}, the depth")
    return {"window_size": window, "full_attention_layers": tuple(blocks)}


def _table_arguments(vision, sizes, text_layers):
    entries = vision.size("num_position_embeddings")
    if math.isqrt(entries) ** 2 != entries:
        raise vision.error("num_position_embeddings", "a square number")
    key = "deepstack_visual_indexes"
    blocks, layers = _block_numbers(vision, key), sizes["vision_num_layers"]
    is_rising = all(a < b for a, b in zip(blocks, blocks[1:], strict=False))
    if not is_rising or len(blocks) > text_layers or any(i >= layers for i in blocks):
        raise vision.error(
            key,
            f"rising numbers below {layers}, the depth, and no more of them than the "
            f"{text_layers} blocks of the text model",
        )
    return {"num_position_embeddings": entries, "deepstack_layers": tuple(blocks)}


def _block_numbers(vision, key):
    found = vision.values[key]
    if not isinstance(found, list) or not all(is_whole(i) and i >= 0 for i in found):
        raise vision.error(key, "a list of whole numbers, 0 or more")
    return found
