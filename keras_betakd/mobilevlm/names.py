"""Maps the names and layouts of checkpoint tensors to the model's variables.

The canonical names are those of MobileVLM V2 and of the original LLaVA; the other
checkpoints differ from them in their prefixes alone.
"""

import re

from keras_betakd.mobilevlm.projectors import mlp_depth
from keras_betakd.vision_language.tensor_loading import Target, target_of

TOWER = "model.vision_tower.vision_tower.vision_model."
PROJECTOR = "model.mm_projector."

# Prefixes and their canonical form; the first that matches is replaced.
_PREFIXES = (
    # Hugging Face's port, as published and as newer versions save it.
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
    ("model.vision_tower.vision_model.", TOWER),
    ("vision_tower.vision_model.", TOWER),
    ("model.multi_modal_projector.linear_1.", PROJECTOR + "0."),
    ("model.multi_modal_projector.linear_2.", PROJECTOR + "2."),
    ("multi_modal_projector.linear_1.", PROJECTOR + "0."),
    ("multi_modal_projector.linear_2.", PROJECTOR + "2."),
    # CLIP's own checkpoint.
    ("vision_model.", TOWER),
)

# Tensors that are not loaded: buffers that follow from the configuration, CLIP's text
# model, and tensors that the released training code of Beta-KD leaves in its students.
_IGNORED = re.compile(
    r".*\.rotary_emb\.inv_freq|.*\.embeddings\.position_ids|distill_.*"
    r"|text_model\..*|text_projection\..*|visual_projection\..*|logit_scale"
)

BLOCK = "model.layers.{i}."
LANGUAGE = {
    "transformer_layer_{i}/self_attention/query/kernel": "self_attn.q_proj.weight",
    "transformer_layer_{i}/self_attention/key/kernel": "self_attn.k_proj.weight",
    "transformer_layer_{i}/self_attention/value/kernel": "self_attn.v_proj.weight",
    "transformer_layer_{i}/self_attention/attention_output/kernel": (
        "self_attn.o_proj.weight"
    ),
    "transformer_layer_{i}/self_attention_layernorm/scale": "input_layernorm.weight",
    "transformer_layer_{i}/feedforward_gate_dense/kernel": "mlp.gate_proj.weight",
    "transformer_layer_{i}/feedforward_intermediate_dense/kernel": "mlp.up_proj.weight",
    "transformer_layer_{i}/feedforward_output_dense/kernel": "mlp.down_proj.weight",
    "transformer_layer_{i}/feedforward_layernorm/scale": (
        "post_attention_layernorm.weight"
    ),
}
VISION = {
    "layer_norm_1/gamma": "layer_norm1.weight",
    "layer_norm_1/beta": "layer_norm1.bias",
    "layer_norm_2/gamma": "layer_norm2.weight",
    "layer_norm_2/beta": "layer_norm2.bias",
    "dense_1/kernel": "mlp.fc1.weight",
    "dense_1/bias": "mlp.fc1.bias",
    "dense_2/kernel": "mlp.fc2.weight",
    "dense_2/bias": "mlp.fc2.bias",
    **{
        f"attention/{ours}/{kind}": f"self_attn.{theirs}.{their_kind}"
        for ours, theirs in (
            ("query", "q_proj"),
            ("key", "k_proj"),
            ("value", "v_proj"),
            ("attention_output", "out_proj"),
        )
        for kind, their_kind in (("kernel", "weight"), ("bias", "bias"))
    },
}
OTHERS = {
    "token_embedding/embeddings": "model.embed_tokens.weight",
    "token_embedding/reverse_embeddings": "lm_head.weight",
    "sequence_output_layernorm/scale": "model.norm.weight",
    "encoder_embedding/class_embedding": TOWER + "embeddings.class_embedding",
    "encoder_embedding/patch_embedding/kernel": (
        TOWER + "embeddings.patch_embedding.weight"
    ),
    "encoder_embedding/position_embedding/embeddings": (
        TOWER + "embeddings.position_embedding.weight"
    ),
    # Every checkpoint spells it "layrnorm".
    "encoder_pre_layer_norm/gamma": TOWER + "pre_layrnorm.weight",
    "encoder_pre_layer_norm/beta": TOWER + "pre_layrnorm.bias",
    "encoder_layer_norm/gamma": TOWER + "post_layernorm.weight",
    "encoder_layer_norm/beta": TOWER + "post_layernorm.bias",
}


def canonical_name(name):
    """The name in the layout of MobileVLM V2; `None` for tensors that go unused."""
    if _IGNORED.fullmatch(name):
        return None
    for theirs, ours in _PREFIXES:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def targets(backbone):
    """Dict of canonical name to `Target`, for every weight of a `MobileVLMBackbone`."""
    variables = {v.path: v for v in backbone.weights}
    # It is not in checkpoints: 0, 1, 2, ...
    del variables["encoder_embedding/position_ids"]
    names = _names(backbone)
    return {names[path]: _target(path, v) for path, v in variables.items()}


def _names(backbone):
    """Dict of variable path to canonical name."""
    names = dict(OTHERS)
    for i in range(backbone.num_layers):
        for path, name in LANGUAGE.items():
            names[path.format(i=i)] = BLOCK.format(i=i) + name
    for i in range(backbone.vision_num_layers):
        for path, name in VISION.items():
            names[f"encoder_encoder_block_{i}/{path}"] = (
                f"{TOWER}encoder.layers.{i}.{name}"
            )
    for layer, name in projector_layers(backbone.projector_type):
        names[f"projector/{layer}/kernel"] = f"{PROJECTOR}{name}weight"
        names[f"projector/{layer}/bias"] = f"{PROJECTOR}{name}bias"
    return names


def projector_layers(projector_type):
    """Pairs of a layer's name and the prefix of its `weight` and `bias`."""
    depth = mlp_depth(projector_type)
    if depth is None:
        names = {"dense_1": "mlp.mlp.0.", "dense_2": "mlp.mlp.2."}
        return list({**names, "depthwise": "peg.peg.0."}.items())
    if depth == 1:
        return [("dense_1", "")]
    # The numbers count activations, too, which have no weights.
    return [(f"dense_{i + 1}", f"{2 * i}.") for i in range(depth)]


def _target(path, variable):
    shape = tuple(variable.shape)
    if path.endswith("patch_embedding/kernel"):
        height, width, channels, filters = shape
        return Target(variable, (filters, channels, height, width), (2, 3, 1, 0))
    if path.endswith("depthwise/kernel"):
        height, width, channels, _ = shape
        return Target(variable, (channels, 1, height, width), (2, 3, 0, 1))
    return target_of(variable)
