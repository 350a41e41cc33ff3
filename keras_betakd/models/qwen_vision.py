"""Runs Qwen3.5's vision encoder on images of any size, with static shapes.

It uses the layers of `Qwen3_5VisionEncoder.call` and computes the same numbers, but
that runs eagerly on the images of a batch one after another. Here each image has P
slots for patches, of which it fills the first H * W, and everything that depends on H
and W is computed inside the step.
"""

from keras import ops

from keras_betakd.models.hooks import called
from keras_betakd.vision_language.patch_grid import PatchGrid, rotated


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
    merge = encoder.spatial_merge_size
    grid = PatchGrid(ops.reshape(grids, (-1, 3)), patches, merge)
    x = encoder.patch_embed(ops.reshape(pixel_values, (-1, *shape[3:])))
    x = ops.cast(ops.reshape(x, (-1, patches, encoder.hidden_size)), "float32")
    for number, share in grid.interpolation(encoder.num_grid_per_side):
        x = x + encoder.pos_embed(number) * ops.expand_dims(share, -1)
    head_dim = encoder.hidden_size // encoder.num_heads
    rotation = grid.rotation(head_dim, encoder.rotary_pos_emb.theta)
    for block in encoder.blocks:
        x = called(block, _block, x, rotation, grid.mask)
    merged = encoder.merger(ops.reshape(x, (-1, encoder.hidden_size)))
    return ops.reshape(merged, (shape[0], shape[1], -1, encoder.out_hidden_size))


def _block(block, x, rotation, mask):
    x = x + _attention(block.attn, block.norm1(x), rotation, mask)
    return x + block.mlp(block.norm2(x))


def _attention(layer, x, rotation, mask):
    shape = (*ops.shape(x)[:2], layer.num_heads, layer.head_dim)
    parts = ops.split(layer.qkv(x), 3, axis=-1)
    query, key, value = (ops.reshape(part, shape) for part in parts)
    mixed = ops.nn.dot_product_attention(
        rotated(query, *rotation), rotated(key, *rotation), value, mask=mask
    )
    return layer.proj(ops.reshape(mixed, (*shape[:2], layer.hidden_size)))
