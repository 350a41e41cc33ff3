"""Projectors: map the vision tower's features to tokens of the language model."""

import math
import re

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_betakd")
class LDPv2Projector(keras.layers.Layer):
    """MobileVLM V2's lightweight downsample projector.

    With X the features of N = m^2 patches,

        Y = pool(W_2 gelu(W_1 X + b_1) + b_2),    Z = Y + depthwise(Y)

    where `pool` is the adaptive mean over an m x m grid to g x g cells (cell i averages
    rows floor(i m / g) up to, not including, ceil((i + 1) m / g)), gelu is the exact
    one, and the depthwise convolution is 3 x 3 with zero padding and a bias.

    Args:
        output_dim: int, H, width of the language model.
        grid_size: int, g; an image becomes g^2 tokens. The released models have 12.
        **kwargs: as for any layer.

    Call arguments:
        features: (..., N, D), N the square of a whole number.

    Returns:
        (..., g^2, H), the cells row by row.

    Raises:
        ValueError: N is not the square of a whole number.

    Example:

    >>> projector = LDPv2Projector(output_dim=8, grid_size=2)
    >>> tuple(projector(ops.zeros((1, 16, 4))).shape)
    (1, 4, 8)

    Source: Chu et al. 2024 (MobileVLM V2, arXiv 2402.03766), section 3.3.
    """

    def __init__(self, output_dim: int, grid_size: int = 12, **kwargs):
        super().__init__(**kwargs)
        self.output_dim = output_dim
        self.grid_size = grid_size
        common = {"dtype": self.dtype_policy}
        self.dense_1 = keras.layers.Dense(output_dim, name="dense_1", **common)
        self.dense_2 = keras.layers.Dense(output_dim, name="dense_2", **common)
        grid = {"data_format": "channels_last", **common}
        self.pooling = keras.layers.AdaptiveAveragePooling2D(
            grid_size, name="pooling", **grid
        )
        self.depthwise = keras.layers.DepthwiseConv2D(
            3, padding="same", name="depthwise", **grid
        )

    def build(self, input_shape):
        _side(input_shape)
        self.dense_1.build(input_shape)
        self.dense_2.build((*input_shape[:-1], self.output_dim))
        self.depthwise.build((None, self.grid_size, self.grid_size, self.output_dim))
        self.built = True

    def call(self, features):
        shape, side = ops.shape(features), _side(features.shape)
        x = self.dense_2(ops.gelu(self.dense_1(features), approximate=False))
        x = self.pooling(ops.reshape(x, (-1, side, side, self.output_dim)))
        x = x + self.depthwise(x)
        return ops.reshape(x, self.compute_output_shape(shape))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-2], self.grid_size**2, self.output_dim)

    def get_config(self):
        return {
            **super().get_config(),
            "output_dim": self.output_dim,
            "grid_size": self.grid_size,
        }


@keras.saving.register_keras_serializable(package="keras_betakd")
class MLPProjector(keras.layers.Layer):
    """LLaVA's projector: dense layers with the exact gelu between them.

    Args:
        output_dim: int, H, width of the language model.
        depth: int, how many dense layers; 1 is a linear projection.
        **kwargs: as for any layer.

    Call arguments:
        features: (..., N, D).

    Returns:
        (..., N, H): one token for each patch.

    Example:

    >>> tuple(MLPProjector(output_dim=8)(ops.zeros((1, 16, 4))).shape)
    (1, 16, 8)

    Source: Liu et al. 2024 (LLaVA-1.5, arXiv 2310.03744), section 3.2.
    """

    def __init__(self, output_dim: int, depth: int = 2, **kwargs):
        super().__init__(**kwargs)
        self.output_dim = output_dim
        self.depth = depth
        self.dense_layers = [
            keras.layers.Dense(
                output_dim, dtype=self.dtype_policy, name=f"dense_{i + 1}"
            )
            for i in range(depth)
        ]

    def build(self, input_shape):
        for layer in self.dense_layers:
            layer.build(input_shape)
            input_shape = (*input_shape[:-1], self.output_dim)
        self.built = True

    def call(self, features):
        x = self.dense_layers[0](features)
        for layer in self.dense_layers[1:]:
            x = layer(ops.gelu(x, approximate=False))
        return x

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.output_dim)

    def get_config(self):
        return {
            **super().get_config(),
            "output_dim": self.output_dim,
            "depth": self.depth,
        }


def make_projector(projector_type, output_dim, grid_size, **kwargs):
    """The projector that a checkpoint's `mm_projector_type` names.

    Args:
        projector_type: `"ldpnetv2"` (and names that start so), `"linear"`, or
            `"mlp<k>x_gelu"` with k dense layers.
        output_dim: width of the language model.
        grid_size: side of the grid of image tokens, of `"ldpnetv2"` alone.
        **kwargs: as for any layer.
    """
    depth = mlp_depth(projector_type)
    if depth is None:
        return LDPv2Projector(output_dim, grid_size, **kwargs)
    return MLPProjector(output_dim, depth=depth, **kwargs)


def mlp_depth(projector_type):
    """How many dense layers a type of projector has; `None` for MobileVLM V2's own.

    Raises:
        ValueError: the type is not known.
    """
    name = str(projector_type)
    if name.startswith("ldpnetv2"):
        return None
    if name == "linear":
        return 1
    found = re.fullmatch(r"mlp([1-9][0-9]{0,3})x_gelu", name)
    if found:
        return int(found.group(1))
    raise ValueError(
        "`projector_type` must be 'ldpnetv2' (MobileVLM V2), 'mlp<k>x_gelu' (LLaVA-1.5 "
        f"has k = 2) or 'linear'. Received: projector_type={projector_type!r}"
    )


def _side(shape):
    side = math.isqrt(shape[-2])
    if side**2 != shape[-2]:
        raise ValueError(
            "The number of patches must be the square of a whole number, to lie on a "
            f"grid. Received: {shape[-2]} patches"
        )
    return side
