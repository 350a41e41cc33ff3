"""Maps the names and layouts of checkpoint tensors to the model's variables.

The canonical names are those that Qwen2-VL and Qwen2.5-VL are published with; Qwen3-VL
and what trainers save have other prefixes.
"""

import re

from keras_betakd.vision_language.tensor_loading import Target, target_of

VISION = "visual."
TEXT = "model."
HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"

# Prefixes and their canonical form; the first that matches is replaced.
_PREFIXES = (
    ("model.visual.", VISION),
    ("model.language_model.", TEXT),
)

# Buffers that follow from the configuration, which the published files do not hold.
_IGNORED = re.compile(r".*\binv_freq")

# Variables of a layer, and what they are called in checkpoints.
_VARIABLES = {
    "kernel": "weight",
    "bias": "bias",
    "scale": "weight",
    "gamma": "weight",
    "beta": "bias",
}

# Layers by their names here and in checkpoints. Those that a family lacks have no
# variables.
_BLOCK = {
    "self_attention/query": "self_attn.q_proj",
    "self_attention/key": "self_attn.k_proj",
    "self_attention/value": "self_attn.v_proj",
    "self_attention/attention_output": "self_attn.o_proj",
    "self_attention/query_norm": "self_attn.q_norm",
    "self_attention/key_norm": "self_attn.k_norm",
    "self_attention_layernorm": "input_layernorm",
    "feedforward_layernorm": "post_attention_layernorm",
    "feedforward_gate_dense": "mlp.gate_proj",
    "feedforward_intermediate_dense": "mlp.up_proj",
    "feedforward_output_dense": "mlp.down_proj",
}
_VISION_BLOCK = {
    "norm_1": "norm1",
    "norm_2": "norm2",
    "attention/qkv": "attn.qkv",
    "attention/projection": "attn.proj",
}
VISION_MLP = {
    "qwen2_vl": {"mlp/fc1": "mlp.fc1", "mlp/fc2": "mlp.fc2"},
    "qwen2_5_vl": {
        "mlp/gate": "mlp.gate_proj",
        "mlp/up": "mlp.up_proj",
        "mlp/down": "mlp.down_proj",
    },
    "qwen3_vl": {"mlp/fc1": "mlp.linear_fc1", "mlp/fc2": "mlp.linear_fc2"},
}
_OLD_MERGER = {"norm": "ln_q", "dense_1": "mlp.0", "dense_2": "mlp.2"}
MERGER = {
    "qwen2_vl": _OLD_MERGER,
    "qwen2_5_vl": _OLD_MERGER,
    "qwen3_vl": {"norm": "norm", "dense_1": "linear_fc1", "dense_2": "linear_fc2"},
}


def canonical_name(name):
    """The name in the layout of Qwen2.5-VL; `None` for tensors that go unused."""
    if _IGNORED.fullmatch(name):
        return None
    for theirs, ours in _PREFIXES:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def targets(backbone):
    """Dict of canonical name to `Target`, for every weight of a `QwenVLBackbone`."""
    names = _names(backbone)
    return {names[v.path]: _target(v, backbone) for v in backbone.weights}


def _names(backbone):
    """Dict of variable path to canonical name."""
    layers = {
        "sequence_output_layernorm": "model.norm",
        "vision_encoder/patch_embedding": "visual.patch_embed.proj",
    }
    for i in range(backbone.num_layers):
        layers |= _inside(f"transformer_layer_{i}", f"model.layers.{i}", _BLOCK)
    block = _VISION_BLOCK | VISION_MLP[backbone.family]
    for i in range(backbone.vision_num_layers):
        layers |= _inside(f"vision_encoder/block_{i}", f"visual.blocks.{i}", block)
    merger = MERGER[backbone.family]
    layers |= _inside("projector", "visual.merger", merger)
    for k in range(len(backbone.deepstack_layers)):
        theirs = f"visual.deepstack_merger_list.{k}"
        layers |= _inside(f"deepstack_projector_{k}", theirs, merger)
    names = {
        f"{ours}/{variable}": f"{theirs}.{kind}"
        for ours, theirs in layers.items()
        for variable, kind in _VARIABLES.items()
    }
    return names | {
        "token_embedding/embeddings": EMBEDDING,
        "token_embedding/reverse_embeddings": HEAD,
        "vision_encoder/position_embedding/embeddings": "visual.pos_embed.weight",
    }


def _inside(ours, theirs, layers):
    return {f"{ours}/{name}": f"{theirs}.{other}" for name, other in layers.items()}


def _target(variable, backbone):
    path, shape = variable.path, tuple(variable.shape)
    if path.endswith("patch_embedding/kernel"):
        frames, side = backbone.temporal_patch_size, backbone.patch_size
        return Target(variable, (shape[-1], 3, frames, side, side), (1, 2, 3, 4, 0))
    return target_of(variable)
