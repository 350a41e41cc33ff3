"""Computes the attention weights of decoder blocks from their queries and keys.

keras-hub's decoders do not return their attention weights, and with flash attention
they are never held in memory. Queries and keys, after rotation and norms, can be
recorded in the layer, and the softmax of the rows needed is computed again: some rows
at a time, and for the gradient once more, so that memory does not grow with the square
of the length.
"""

import math

import keras
from keras import ops

from keras_betakd.models.hooks import recorded

# Features that are made of attention; of other blocks than the first, their names end
# in the numbers of these: "attention:3,4".
KINDS = ("attention", "saliency", "prompt_saliency", "image_attention")
FIRST = (0,)

# Query rows whose weights are in memory at a time, for each head.
_TILE = 256


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


def attention_weights(layer, calls, rows):
    """The attention weights of some rows of a decoder block, averaged over its heads.

    They are softmax(c tanh(s / c)) with s = q k^T / sqrt(d), with the layer's own d,
    soft cap c and mask; without a soft cap, softmax(s).

    Args:
        layer: its self-attention layer.
        calls: the calls that `record_attention` yielded, after the model ran.
        rows: int (B, K), the positions whose attention to compute.

    Returns:
        (B, K, T) float32; each row sums to 1.
    """
    if _fits(rows.shape[1]):
        return _of_tile(layer, calls, rows, lambda weights: weights)
    tiles = _in_tiles(rows)
    found = _of_tiles(layer, calls, tiles, lambda weights: weights)
    count, batch, size, length = ops.shape(found)
    found = ops.reshape(ops.swapaxes(found, 0, 1), (batch, count * size, length))
    return found[:, : rows.shape[1]]


def attention_sum(layer, calls, queries):
    """The sum of the attention weights of all rows, each times a number of its own.

    Args:
        layer, calls: as for `attention_weights`.
        queries: float (B, T), the number of each row.

    Returns:
        (B, T) float32, sum_k queries_k weights_kt.
    """
    batch, length = ops.shape(queries)
    rows = ops.broadcast_to(ops.arange(length, dtype="int32"), (batch, length))

    def summed(weights, queries):
        return ops.einsum("bkt,bk->bt", weights, queries)

    if _fits(queries.shape[1]):
        return _of_tile(layer, calls, rows, summed, queries)
    tiles = _in_tiles(rows), _in_tiles(queries)
    return ops.sum(_of_tiles(layer, calls, tiles[0], summed, tiles[1]), axis=0)


def attention_among(layer, calls, positions):
    """The attention among the tokens of each image, averaged over the heads.

    Of the weights, which are shares of all that a query attends to, those of keys in
    the same image are taken, one image at a time.

    Args:
        layer, calls: as for `attention_weights`.
        positions: int (B, P, T), of the tokens of each image.

    Returns:
        (B, P, T, T) float32, queries by keys.
    """

    def among(weights, rows):
        size = ops.shape(rows)[1]
        keys = ops.repeat(rows[:, None], size, axis=1)
        return ops.take_along_axis(weights, keys, axis=2)

    images = ops.swapaxes(positions, 0, 1)
    return ops.swapaxes(_of_tiles(layer, calls, images, among, images), 0, 1)


def _fits(count):
    # A number that TensorFlow does not know while it traces is that of a short batch
    # more often than not, and no tiles can be made of it.
    return count is None or count <= _TILE


def _in_tiles(x):
    """(B, N) as (tiles, B, `_TILE`), the last one filled up with zeros."""
    batch, count = ops.shape(x)
    tiles = -(-count // _TILE)
    x = ops.pad(x, ((0, 0), (0, tiles * _TILE - count)))
    return ops.swapaxes(ops.reshape(x, (batch, tiles, _TILE)), 0, 1)


def _of_tiles(layer, calls, rows, read, *others):
    """`_of_tile` of each of some tiles, as (tiles, ...).

    Args:
        rows: int (tiles, B, N), the positions of query rows.
        others: arrays of (tiles, ...).
    """
    if rows.shape[0] == 1:
        found = _of_tile(layer, calls, rows[0], read, *(x[0] for x in others))
        return found[None]
    return ops.map(
        lambda tile: _of_tile(layer, calls, tile[0], read, *tile[1]), (rows, others)
    )


def _of_tile(layer, calls, rows, read, *others):
    """What `read` makes of the weights (B, N, T) of some rows and of `others`.

    Its gradient computes the weights again, and keeps queries and keys alone.

    Args:
        rows: int (B, N), the positions of the query rows.
    """
    query, key, mask = _recorded(calls)
    query = ops.take_along_axis(query, rows[:, :, None, None], axis=1)
    mask = _mask(layer, ops.take_along_axis(mask, rows[:, :, None], axis=1), rows)

    def found(query, key):
        return read(_weights(layer, query, key, mask), *others)

    return keras.remat(found)(query, key)


def _recorded(calls):
    """Queries, keys and mask of the recorded calls."""
    (attention, rotations) = calls
    _, arguments, _ = attention[0]
    query, key = (output for _, _, output in rotations)
    return query, key, arguments["attention_mask"]


def _weights(layer, query, key, mask):
    query, key = (ops.cast(x, "float32") for x in (query, key))
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
    distance = ops.cast(rows, "int32")[..., None] - positions
    window = layer.sliding_window_size
    return ops.logical_and(mask, ops.logical_and(distance < window, -distance < window))
