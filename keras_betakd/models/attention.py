"""Computes the attention weights of decoder blocks from their queries and keys.

keras-hub's decoders do not return their attention weights, and with flash attention
they are never held in memory. Queries and keys, after rotation and norms, can be
recorded in the layer, and the softmax of the few rows needed is computed again.
"""

import math

from keras import ops

from keras_betakd.models.hooks import recorded

# Features that are made of attention; of other blocks than the first, their names end
# in the numbers of these: "attention:3,4".
KINDS = ("attention", "saliency", "prompt_saliency")
FIRST = (0,)


def attention_name(kind, blocks=FIRST):
    """The name of a feature made of the attention of some decoder blocks.

    Args:
        kind: one of `KINDS`.
        blocks: the numbers of the blocks, over which the attention is averaged.

    Example:

    >>> attention_name("attention"), attention_name("attention", (3, 4))
    ('attention', 'attention:3,4')
    """
    return kind if blocks == FIRST else f"{kind}:{','.join(map(str, blocks))}"


def kind_and_blocks(name):
    """What `attention_name` was given; `(name, None)` for another feature."""
    kind, _, blocks = name.partition(":")
    if kind not in KINDS:
        return name, None
    return kind, tuple(map(int, blocks.split(","))) if blocks else FIRST


def record_attention(layer):
    """A context that records the calls that `attention_weights` needs.

    Args:
        layer: the self-attention layer of a decoder block.
    """
    return recorded(layer, layer.rope_layer)


def attention_weights(layer, calls, rows=None):
    """The attention weights of a decoder block, averaged over its heads.

    They are softmax(c tanh(s / c)) with s = q k^T / sqrt(d), with the layer's own d,
    soft cap c and mask; without a soft cap, softmax(s).

    Args:
        layer: its self-attention layer.
        calls: the calls that `record_attention` yielded, after the model ran.
        rows: (B, K), the positions whose attention to compute; all if `None`.

    Returns:
        (B, K, T) float32; each row sums to 1.
    """
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
    # The divisor that keras-hub uses.
    return layer.hidden_dim // layer.num_query_heads


def _mask(layer, mask):
    """The layer's mask, bool (B, T, T), with its sliding window applied."""
    mask = ops.cast(mask, "bool")
    if not layer.use_sliding_window_attention:
        return mask
    positions = ops.arange(ops.shape(mask)[-1], dtype="int32")
    distance = positions[:, None] - positions[None]
    window = layer.sliding_window_size
    return ops.logical_and(mask, ops.logical_and(distance < window, -distance < window))
