"""Attention of the first decoder block, from the layer's own queries and keys.

keras-hub's decoders do not hand out their attention, and on an accelerator they may
never hold it (flash attention). Queries and keys, rotation and norms included, can be
read from the layer, and the softmax of the few rows that matter is made again.
"""

import math

from keras import ops

from keras_betakd.models.hooks import recorded


def record_first_attention(view):
    """A context that notes what `first_attention_weights` needs."""
    layer = view.first_attention()
    return recorded(layer, layer.rope_layer)


def first_attention_weights(view, calls, rows=None):
    """softmax(q k^T) of the first decoder block, averaged over its heads.

    Args:
        view: a `CausalLMView`.
        calls: what `record_first_attention` yielded, after the model ran.
        rows: (B, K), the positions whose attention is wanted; all if `None`.

    Returns:
        (B, K, T) float32; each row adds up to 1.
    """
    layer = view.first_attention()
    (attention, rotations) = calls
    _, arguments, _ = attention[0]
    query, key = (ops.cast(output, "float32") for _, _, output in rotations)
    mask = _mask(layer, arguments["attention_mask"])
    if rows is not None:
        query = ops.take_along_axis(query, rows[:, :, None, None], axis=1)
        mask = ops.take_along_axis(mask, rows[:, :, None], axis=1)
    width = query.shape[-1]
    groups = layer.num_query_heads // layer.num_key_value_heads
    key = ops.repeat(key, groups, axis=2)
    scale = width if layer.query_head_dim_normalize else _model_width_per_head(layer)
    scores = ops.einsum("bkhd,bthd->bhkt", query, key) / math.sqrt(scale)
    if layer.logit_soft_cap is not None:
        scores = layer.logit_soft_cap * ops.tanh(scores / layer.logit_soft_cap)
    scores = ops.where(mask[:, None], scores, -1e9)
    return ops.mean(ops.softmax(scores, axis=-1), axis=1)


def _model_width_per_head(layer):
    # As keras-hub divides.
    return layer.hidden_dim // layer.num_query_heads


def _mask(layer, mask):
    """The layer's mask, (B, T, T), with its sliding window."""
    mask = ops.cast(mask, "bool")
    if not layer.use_sliding_window_attention:
        return mask
    positions = ops.arange(ops.shape(mask)[-1], dtype="int32")
    distance = positions[:, None] - positions[None]
    window = layer.sliding_window_size
    return ops.logical_and(mask, ops.logical_and(distance < window, -distance < window))
