"""The tensors that a configuration needs, known before a model is made."""

from keras_betakd.mobilevlm.names import (
    BLOCK,
    LANGUAGE,
    OTHERS,
    PROJECTOR,
    TOWER,
    VISION,
    projector_layers,
)


def tensor_shapes(arguments):
    """Dict of canonical name to shape, of all tensors that a backbone loads.

    Args:
        arguments: dict, those of `MobileVLMBackbone`.
    """
    shapes = {name: _of_others(name, arguments) for name in OTHERS.values()}
    for i in range(arguments["num_layers"]):
        for name in LANGUAGE.values():
            shapes[BLOCK.format(i=i) + name] = _of_language(name, arguments)
    for i in range(arguments["vision_num_layers"]):
        for name in VISION.values():
            shapes[f"{TOWER}encoder.layers.{i}.{name}"] = _of_vision(name, arguments)
    inputs, width = arguments["vision_hidden_dim"], arguments["hidden_dim"]
    for layer, name in projector_layers(arguments["projector_type"]):
        kernel = (width, 1, 3, 3) if layer == "depthwise" else (width, inputs)
        shapes[f"{PROJECTOR}{name}weight"] = kernel
        shapes[f"{PROJECTOR}{name}bias"] = (width,)
        inputs = width
    return shapes


def _of_others(name, arguments):
    if not name.startswith(TOWER):
        width = arguments["hidden_dim"]
        return (
            (width,)
            if name == "model.norm.weight"
            else (arguments["vocabulary_size"], width)
        )
    width, patch = arguments["vision_hidden_dim"], arguments["patch_size"]
    if name.endswith("patch_embedding.weight"):
        return width, 3, patch, patch
    if name.endswith("position_embedding.weight"):
        return (arguments["image_size"] // patch) ** 2 + 1, width
    return (width,)


def _of_language(name, arguments):
    width, inner = arguments["hidden_dim"], arguments["intermediate_dim"]
    heads = arguments["num_query_heads"]
    shared = width // heads * arguments["num_key_value_heads"]
    return {
        "self_attn.q_proj.weight": (width, width),
        "self_attn.k_proj.weight": (shared, width),
        "self_attn.v_proj.weight": (shared, width),
        "self_attn.o_proj.weight": (width, width),
        "mlp.gate_proj.weight": (inner, width),
        "mlp.up_proj.weight": (inner, width),
        "mlp.down_proj.weight": (width, inner),
    }.get(name, (width,))


def _of_vision(name, arguments):
    width = arguments["vision_hidden_dim"]
    inner = arguments["vision_intermediate_dim"]
    if "norm" in name:
        return (width,)
    layer, kind = name.rsplit(".", 1)
    outputs, inputs = {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}.get(
        layer, (width, width)
    )
    return (outputs, inputs) if kind == "weight" else (outputs,)
