"""The tensors that a configuration needs, known before a model is made."""

from keras_betakd.qwen_vl.families import family_of
from keras_betakd.qwen_vl.names import EMBEDDING, HEAD, MERGER, TEXT, VISION, VISION_MLP


def tensor_shapes(arguments):
    """Dict of canonical name to shape, of all tensors that a backbone loads.

    Args:
        arguments: dict, those of `QwenVLBackbone`.
    """
    kind = family_of(arguments["family"])
    width = arguments["hidden_dim"]
    table = (arguments["vocabulary_size"], width)
    shapes = {EMBEDDING: table, TEXT + "norm.weight": (width,)}
    if not arguments["tie_word_embeddings"]:
        shapes[HEAD] = table
    block = _of_block(arguments, kind)
    for i in range(arguments["num_layers"]):
        shapes |= {f"{TEXT}layers.{i}.{name}": shape for name, shape in block.items()}
    block = _of_vision_block(arguments, kind)
    for i in range(arguments["vision_num_layers"]):
        shapes |= {f"{VISION}blocks.{i}.{name}": shape for name, shape in block.items()}
    return shapes | {VISION + n: s for n, s in _of_vision(arguments, kind).items()}


def _of_block(arguments, kind):
    width, inner = arguments["hidden_dim"], arguments["intermediate_dim"]
    head_dim = arguments["head_dim"]
    queries = head_dim * arguments["num_query_heads"]
    shared = head_dim * arguments["num_key_value_heads"]
    shapes = {
        "self_attn.q_proj.weight": (queries, width),
        "self_attn.k_proj.weight": (shared, width),
        "self_attn.v_proj.weight": (shared, width),
        "self_attn.o_proj.weight": (width, queries),
        "mlp.gate_proj.weight": (inner, width),
        "mlp.up_proj.weight": (inner, width),
        "mlp.down_proj.weight": (width, inner),
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
    }
    if kind.qkv_bias:
        shapes |= {
            "self_attn.q_proj.bias": (queries,),
            "self_attn.k_proj.bias": (shared,),
            "self_attn.v_proj.bias": (shared,),
        }
    if kind.qk_norm:
        shapes |= {
            "self_attn.q_norm.weight": (head_dim,),
            "self_attn.k_norm.weight": (head_dim,),
        }
    return shapes


def _of_vision_block(arguments, kind):
    width = arguments["vision_hidden_dim"]
    inner = arguments["vision_intermediate_dim"]
    shapes = {
        **_norm("norm1", width, kind),
        **_norm("norm2", width, kind),
        **_dense("attn.qkv", width, 3 * width),
        **_dense("attn.proj", width, width),
    }
    *into, out_of = VISION_MLP[arguments["family"]].values()
    for name in into:
        shapes |= _dense(name, width, inner)
    return shapes | _dense(out_of, inner, width)


def _of_vision(arguments, kind):
    """What the vision encoder has beside its blocks, mergers included."""
    width, patch = arguments["vision_hidden_dim"], arguments["patch_size"]
    kernel = (width, 3, arguments["temporal_patch_size"], patch, patch)
    shapes = {"patch_embed.proj.weight": kernel}
    if kind.patch_bias:
        shapes["patch_embed.proj.bias"] = (width,)
    if kind.position_table:
        shapes["pos_embed.weight"] = (arguments["num_position_embeddings"], width)
    norm, first, second = MERGER[arguments["family"]].values()
    block = width * arguments["spatial_merge_size"] ** 2
    mergers = {"merger": width}
    for k in range(len(arguments.get("deepstack_layers", ()))):
        # They normalise the merged patches together.
        mergers[f"deepstack_merger_list.{k}"] = block
    for merger, normalised in mergers.items():
        shapes |= {
            **_norm(f"{merger}.{norm}", normalised, kind),
            **_dense(f"{merger}.{first}", block, block),
            **_dense(f"{merger}.{second}", block, arguments["hidden_dim"]),
        }
    return shapes


def _norm(name, width, kind):
    kinds = ("weight",) if kind.vision_rms_norm else ("weight", "bias")
    return {f"{name}.{one}": (width,) for one in kinds}


def _dense(name, inputs, outputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
