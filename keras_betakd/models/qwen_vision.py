"""Runs Qwen3.5's vision encoder on images of any size, with static shapes.

It uses the layers of `Qwen3_5VisionEncoder.call` and computes the same numbers, but
that runs eagerly on the images of a batch one after another. Here each image has P
slots for patches, of which it fills the first H * W, and everything that depends on H
and W is computed inside the step.
"""

import math

from keras import ops


def image_tokens(encoder, pixel_values, grids):
    """The image tokens of each image, which enter the language model.

    Args:
        encoder: a `Qwen3_5VisionEncoder`.
        pixel_values: (B, N, P, 2, p, p, 3): P patches of each of N images, in the
            order of `keras_betakd.preprocessing.qwen_images.patches_of` (those of an
            image token together), padded with any values.
        grids: (B, N, 3) int, (1, H, W) patches; (0, 0, 0) where there is no image.

    Returns:
        (B, N, P / m^2, width) for patches merged m x m; the first H * W / m^2 of an
        image are real, the others padding.
    """
    shape = ops.shape(pixel_values)
    patches = shape[2]
    height, width = (ops.reshape(grids[..., axis], (-1, 1)) for axis in (1, 2))
    rows, columns = _places(patches, width, encoder.spatial_merge_size)
    x = encoder.patch_embed(ops.reshape(pixel_values, (-1, *shape[3:])))
    x = ops.reshape(x, (-1, patches, encoder.hidden_size))
    x = ops.cast(x, "float32") + _position_embedding(
        encoder, rows, columns, height, width
    )
    rotation = _rotation(encoder, rows, columns)
    real = ops.arange(patches, dtype="int32")[None] < height * width
    # Where there is no image, attention to all slots avoids a softmax over none.
    mask = ops.logical_or(real, height * width == 0)[:, None, None]
    for block in encoder.blocks:
        x = _block(block, x, rotation, mask)
    merged = encoder.merger(ops.reshape(x, (-1, encoder.hidden_size)))
    return ops.reshape(merged, (shape[0], shape[1], -1, encoder.out_hidden_size))


def _places(patches, width, merge):
    """Row and column of each patch slot, (images, P); merged patches are adjacent."""
    number = ops.arange(patches, dtype="int32")[None]
    across = ops.maximum(width // merge, 1)
    block, inside = number // merge**2, number % merge**2
    rows = block // across * merge + inside // merge
    columns = block % across * merge + inside % merge
    return rows, columns


def _position_embedding(encoder, rows, columns, height, width):
    """The learned position embeddings, interpolated to each image's own grid."""
    side = encoder.num_grid_per_side
    down = _neighbours(rows, height, side)
    right = _neighbours(columns, width, side)
    total = 0.0
    for row, row_share in down:
        for column, column_share in right:
            found = encoder.pos_embed(row * side + column)
            total = total + found * ops.expand_dims(row_share * column_share, -1)
    return total


def _neighbours(numbers, count, side):
    """The two nearest of `side` table entries, each with its interpolation weight."""
    step = (side - 1) / ops.cast(ops.maximum(count - 1, 1), "float32")
    place = ops.minimum(ops.cast(numbers, "float32") * step, float(side - 1))
    lower = ops.floor(place)
    share = place - lower
    lower = ops.cast(lower, "int32")
    return (lower, 1 - share), (ops.minimum(lower + 1, side - 1), share)


def _rotation(encoder, rows, columns):
    """Cosine and sine of the two-axis rotary angles: (images, P, 1, head width)."""
    width = encoder.hidden_size // encoder.num_heads // 2
    exponents = ops.arange(0, width, 2, dtype="float32") / width
    frequencies = ops.exp(-math.log(encoder.rotary_pos_emb.theta) * exponents)
    places = ops.cast(ops.stack([rows, columns], axis=-1), "float32")
    angles = ops.expand_dims(places, -1) * frequencies
    angles = ops.reshape(angles, (*ops.shape(rows), width))
    angles = ops.concatenate([angles, angles], axis=-1)[:, :, None]
    return ops.cos(angles), ops.sin(angles)


def _block(block, x, rotation, mask):
    x = x + _attention(block.attn, block.norm1(x), rotation, mask)
    return x + block.mlp(block.norm2(x))


def _attention(layer, x, rotation, mask):
    shape = (*ops.shape(x)[:2], layer.num_heads, layer.head_dim)
    parts = ops.split(layer.qkv(x), 3, axis=-1)
    query, key, value = (ops.reshape(part, shape) for part in parts)
    mixed = ops.nn.dot_product_attention(
        _rotated(query, rotation), _rotated(key, rotation), value, mask=mask
    )
    return layer.proj(ops.reshape(mixed, (*shape[:2], layer.hidden_size)))


def _rotated(x, rotation):
    cosine, sine = rotation
    first, second = ops.split(x, 2, axis=-1)
    return x * cosine + ops.concatenate([-second, first], axis=-1) * sine
