"""Computes the attention weights of decoder blocks from their queries and keys.

keras-hub's decoders do not return their attention weights, and with flash attention
they are never held in memory. Queries and keys, after rotation and norms, can be
recorded in the layer, and the softmax of the few rows needed is computed again.
"""

import math

import keras
from keras import ops

from keras_betakd.models.hooks import recorded

# Features that are made of attention; of other blocks than the first, their names end
# in the numbers of these: "attention:3,4".
KINDS = ("attention", "saliency", "prompt_saliency", "image_attention")
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
    return _weights(layer, *_recorded(calls), rows)


def attention_among(layer, calls, positions):
    """The attention among the tokens of each image, averaged over the heads.

    Of the weights, which are shares of all that a query attends to, those of keys in
    the same image are taken. For the gradient they are computed a second time, so that
    of all decoder blocks that are read, one at a time holds them for each head.

    Args:
        layer: the self-attention layer of a decoder block.
        calls: the calls that `record_attention` yielded, after the model ran.
        positions: int (B, P, T), of the tokens of each image.

    Returns:
        (B, P, T, T) float32, queries by keys.
    """
    query, key, mask = _recorded(calls)
    batch, images, tokens = ops.shape(positions)
    square = batch, images, tokens, tokens
    rows = ops.reshape(positions, (batch, images * tokens))
    keys = ops.broadcast_to(positions[:, :, None], square)
    keys = ops.reshape(keys, (batch, images * tokens, tokens))

    def among(query, key):
        weights = _weights(layer, query, key, mask, rows)
        return ops.take_along_axis(weights, keys, axis=2)

    return ops.reshape(keras.remat(among)(query, key), square)


def _recorded(calls):
    """Queries, keys and mask of the recorded calls."""
    (attention, rotations) = calls
    _, arguments, _ = attention[0]
    query, key = (output for _, _, output in rotations)
    return query, key, arguments["attention_mask"]


def _weights(layer, query, key, mask, rows):
    query, key = (ops.cast(x, "float32") for x in (query, key))
    if rows is not None:
        query = ops.take_along_axis(query, rows[:, :, None, None], axis=1)
        mask = ops.take_along_axis(mask, rows[:, :, None], axis=1)
    mask = _mask(layer, mask, rows)
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


def _mask(layer, mask, rows):
    """The layer's mask of some rows, bool (B, K, T), with its sliding window."""
    mask = ops.cast(mask, "bool")
    if not layer.use_sliding_window_attention:
        return mask
    positions = ops.arange(ops.shape(mask)[-1], dtype="int32")
    rows = positions if rows is None else ops.cast(rows, "int32")
    distance = rows[..., None] - positions
    window = layer.sliding_window_size
    return ops.logical_and(mask, ops.logical_and(distance < window, -distance < window))
