"""The vision encoders of Qwen2-VL, Qwen2.5-VL and Qwen3-VL, with static shapes."""

from collections.abc import Sequence

import keras
from keras import ops

from keras_betakd.qwen_vl.families import family_of
from keras_betakd.qwen_vl.vision_blocks import VisionBlock
from keras_betakd.vision_language.patch_grid import PatchGrid


@keras.saving.register_keras_serializable(package="keras_betakd")
class QwenVLVisionEncoder(keras.layers.Layer):
    """Patch features of images of any size, each padded to P patches.

    Padding changes nothing: no patch attends to it, and its own features, any values,
    belong to no token. In blocks with windows a patch attends to those of its window
    (Qwen2.5-VL), in the others to all of its image, never to another image.

    Args:
        family: `"qwen2_vl"`, `"qwen2_5_vl"` or `"qwen3_vl"`.
        hidden_dim: int, D.
        num_layers: int, blocks.
        num_heads: int, attention heads of a block.
        intermediate_dim: int, width of a block's feed-forward layer.
        patch_size: int, p, height and width of a patch in pixels.
        temporal_patch_size: int, frames of a patch; an image stands in each of them.
        spatial_merge_size: int, m; blocks of m x m patches follow each other.
        window_size: int, height and width of a window in pixels (Qwen2.5-VL).
        full_attention_layers: the numbers of the blocks without windows (Qwen2.5-VL).
        num_position_embeddings: int, entries of the square position table (Qwen3-VL).
        deepstack_layers: the numbers of the blocks whose outputs are returned, too.
        **kwargs: as for any layer.

    Call arguments:
        pixel_values: float (B, M, P, 3 p^2), the patches of M images.
        image_grid_thw: int (B, M, 3), (1, H, W) patches; (0, 0, 0) for no image.

    Returns:
        List of (B, M, P, D): the features after the last block, then those after each
        of `deepstack_layers`.

    Source: Bai et al. 2025 (Qwen2.5-VL, arXiv 2502.13923), section 2.1; Wang et al.
    2024 (Qwen2-VL, arXiv 2409.12191); Bai et al. 2025 (Qwen3-VL, arXiv 2511.21631).
    """

    def __init__(
        self,
        family: str,
        hidden_dim: int,
        num_layers: int,
        num_heads: int,
        intermediate_dim: int,
        patch_size: int = 14,
        temporal_patch_size: int = 2,
        spatial_merge_size: int = 2,
        window_size: int | None = None,
        full_attention_layers: Sequence[int] = (),
        num_position_embeddings: int = 0,
        deepstack_layers: Sequence[int] = (),
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        kind = family_of(family)
        _check_sizes(kind, family, hidden_dim, num_heads, num_layers, deepstack_layers)
        self.family = family
        self.hidden_dim = hidden_dim
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.patch_size = patch_size
        self.temporal_patch_size = temporal_patch_size
        self.spatial_merge_size = spatial_merge_size
        self.window_size = window_size
        self.full_attention_layers = tuple(full_attention_layers)
        self.num_position_embeddings = num_position_embeddings
        self.deepstack_layers = tuple(deepstack_layers)
        self._window_side = self._side(kind)
        dtype = self.dtype_policy
        self.patch_embedding = keras.layers.Dense(
            hidden_dim, use_bias=kind.patch_bias, dtype=dtype, name="patch_embedding"
        )
        self.position_embedding = None
        if kind.position_table:
            self._table_side = _root(num_position_embeddings)
            self.position_embedding = keras.layers.Embedding(
                num_position_embeddings,
                hidden_dim,
                dtype=dtype,
                name="position_embedding",
            )
        self.blocks = [
            VisionBlock(
                kind,
                hidden_dim,
                num_heads,
                intermediate_dim,
                windowed=kind.windows and i not in self.full_attention_layers,
                dtype=dtype,
                name=f"block_{i}",
            )
            for i in range(num_layers)
        ]

    def _side(self, kind):
        """The side of a window in patches; `None` without windows."""
        if not kind.windows:
            return None
        tokens = (self.window_size or 0) // self.spatial_merge_size // self.patch_size
        if tokens < 1:
            raise ValueError(
                "`window_size` must hold a merged patch of "
                f"{self.spatial_merge_size * self.patch_size} pixels at least. "
                f"Received: window_size={self.window_size}"
            )
        return tokens * self.spatial_merge_size

    def build(self, input_shape):
        self.patch_embedding.build((None, self._patch_width * self.temporal_patch_size))
        if self.position_embedding is not None:
            self.position_embedding.build((None,))
        for block in self.blocks:
            block.build((None, None, self.hidden_dim))
        self.built = True

    @property
    def _patch_width(self):
        return 3 * self.patch_size**2

    def call(self, pixel_values, image_grid_thw):
        batch, images, patches = ops.shape(pixel_values)[:3]
        grid = PatchGrid(
            ops.reshape(image_grid_thw, (-1, 3)), patches, self.spatial_merge_size
        )
        x = self._embedded(ops.reshape(pixel_values, (-1, patches, self._patch_width)))
        if self.position_embedding is not None:
            x = x + self._positions(grid)
        rotation = grid.rotation(self.hidden_dim // self.num_heads)
        side = self._window_side
        windows = None if side is None else grid.windows(side)
        after = {}
        for i, block in enumerate(self.blocks):
            x = after[i] = block(x, rotation, grid.mask, windows)
        shape = (batch, images, patches, self.hidden_dim)
        found = (x, *(after[i] for i in self.deepstack_layers))
        return [ops.reshape(features, shape) for features in found]

    def _embedded(self, pixels):
        """The patch embeddings; each frame of a patch holds the image."""
        shape = (-1, ops.shape(pixels)[1], 3, 1, self.patch_size**2)
        frames = ops.repeat(ops.reshape(pixels, shape), self.temporal_patch_size, 3)
        width = self._patch_width * self.temporal_patch_size
        return self.patch_embedding(ops.reshape(frames, (*shape[:2], width)))

    def _positions(self, grid):
        """The learned positions, interpolated to each image's own grid."""
        total = 0.0
        for number, share in grid.interpolation(self._table_side):
            found = ops.cast(self.position_embedding(number), "float32")
            total = total + found * share[..., None]
        return ops.cast(total, self.compute_dtype)

    def compute_output_shape(self, pixel_values_shape, image_grid_thw_shape):
        shape = (*pixel_values_shape[:3], self.hidden_dim)
        return [shape] * (1 + len(self.deepstack_layers))

    def get_config(self):
        names = (
            "family hidden_dim num_layers num_heads intermediate_dim patch_size "
            "temporal_patch_size spatial_merge_size window_size full_attention_layers "
            "num_position_embeddings deepstack_layers"
        )
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in names.split()},
        }


def _check_sizes(kind, family, hidden_dim, num_heads, num_layers, deepstack_layers):
    if hidden_dim % (4 * num_heads):
        raise ValueError(
            "`hidden_dim` must be a multiple of 4 * `num_heads`: rotary positions turn "
            f"pairs of numbers on two axes. Received: hidden_dim={hidden_dim}, "
            f"num_heads={num_heads}"
        )
    if deepstack_layers and not kind.position_table:
        raise ValueError(
            f"`deepstack_layers` belong to Qwen3-VL. Received: family={family!r}, "
            f"deepstack_layers={deepstack_layers}"
        )
    wrong = [i for i in deepstack_layers if not 0 <= i < num_layers]
    if wrong:
        raise ValueError(
            f"`deepstack_layers` must be numbers of the {num_layers} blocks. Received: "
            f"{wrong}"
        )


def _root(entries):
    side = round(entries**0.5)
    if side < 1 or side**2 != entries:
        raise ValueError(
            "`num_position_embeddings` must be a square: the table has as many rows as "
            f"columns. Received: num_position_embeddings={entries}"
        )
    return side
