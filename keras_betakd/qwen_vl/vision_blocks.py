"""The blocks of the vision encoders: attention within an image, and feed-forward."""

import keras
from keras import ops

from keras_betakd.backends import rows_at
from keras_betakd.vision_language.patch_grid import rotated

_EPSILON = 1e-6
# Rotated in float32, whatever the rest computes in, as in the published code.
_ROTATED_IN = "float32"


def vision_norm(family, dtype, name):
    """The normalisation of a family's vision encoder."""
    if family.vision_rms_norm:
        return keras.layers.RMSNormalization(epsilon=_EPSILON, dtype=dtype, name=name)
    return keras.layers.LayerNormalization(epsilon=_EPSILON, dtype=dtype, name=name)


def _quick_gelu(x):
    """x * sigmoid(1.702 x)."""
    return x * ops.sigmoid(1.702 * x)


def _gelu_tanh(x):
    return ops.gelu(x, approximate=True)


_ACTIVATIONS = {"silu": ops.silu, "quick_gelu": _quick_gelu, "gelu_tanh": _gelu_tanh}


class VisionAttention(keras.layers.Layer):
    """Self-attention among the patches of an image, or of a window of it.

    Call arguments:
        x: (N, P, D).
        rotation: cosine and sine, (N, P, 1, D / heads) each, in float32.
        mask: bool, (N, 1, 1, P), or of the windows.
        windows: `Windows`, or `None` for attention to the whole image.
    """

    def __init__(self, hidden_dim, num_heads, **kwargs):
        # Angles stay in float32; the layers within cast what they take.
        super().__init__(autocast=False, **kwargs)
        self.num_heads = num_heads
        self.head_dim = hidden_dim // num_heads
        self.qkv = keras.layers.Dense(
            3 * hidden_dim, dtype=self.dtype_policy, name="qkv"
        )
        self.projection = keras.layers.Dense(
            hidden_dim, dtype=self.dtype_policy, name="projection"
        )

    def build(self, input_shape):
        self.qkv.build(input_shape)
        self.projection.build(input_shape)
        self.built = True

    def call(self, x, rotation, mask, windows=None):
        patches, hidden_dim = ops.shape(x)[1], x.shape[-1]
        qkv = self.qkv(x)
        query, key, value = ops.split(qkv, 3, axis=-1)
        query, key = (self._rotated(part, rotation) for part in (query, key))
        if windows is None:
            return self.projection(self._attended(query, key, value, mask, patches))
        places = mask.shape[-1]
        gathered = rows_at(
            ops.concatenate([query, key, value], axis=-1), windows.sources
        )
        gathered = ops.reshape(gathered, (-1, places, 3 * hidden_dim))
        parts = ops.split(gathered, 3, axis=-1)
        found = self._attended(*parts, mask, places)
        # Back to one axis of all places of an image.
        count = ops.shape(windows.sources)[1]
        found = ops.reshape(found, (-1, count, hidden_dim))
        return self.projection(rows_at(found, windows.targets))

    def _rotated(self, x, rotation):
        heads = ops.reshape(x, (-1, ops.shape(x)[1], self.num_heads, self.head_dim))
        found = rotated(ops.cast(heads, _ROTATED_IN), *rotation)
        return ops.reshape(ops.cast(found, x.dtype), ops.shape(x))

    def _attended(self, query, key, value, mask, length):
        shape = (-1, length, self.num_heads, self.head_dim)
        parts = (ops.reshape(part, shape) for part in (query, key, value))
        found = ops.dot_product_attention(*parts, mask=mask)
        return ops.reshape(found, (-1, length, self.num_heads * self.head_dim))


class VisionMLP(keras.layers.Layer):
    """A feed-forward layer: gated for Qwen2.5-VL, plain for the others; with biases."""

    def __init__(self, family, hidden_dim, intermediate_dim, **kwargs):
        super().__init__(**kwargs)
        self._activation = _ACTIVATIONS[family.vision_activation]
        names = ("gate", "up", "down") if family.vision_gated else ("fc1", "fc2")
        sizes = (intermediate_dim,) * (len(names) - 1) + (hidden_dim,)
        self._names = names
        for name, size in zip(names, sizes, strict=True):
            layer = keras.layers.Dense(size, dtype=self.dtype_policy, name=name)
            setattr(self, name, layer)

    def build(self, input_shape):
        for name in self._names[:-1]:
            getattr(self, name).build(input_shape)
        last = getattr(self, self._names[-1])
        last.build((*input_shape[:-1], getattr(self, self._names[0]).units))
        self.built = True

    def call(self, x):
        if len(self._names) == 2:
            return self.fc2(self._activation(self.fc1(x)))
        return self.down(self._activation(self.gate(x)) * self.up(x))


class VisionBlock(keras.layers.Layer):
    """x + attention(norm_1(x)), then + mlp(norm_2(x)); arguments as `VisionAttention`.

    Args:
        windowed: whether it attends within windows alone.
    """

    def __init__(
        self, family, hidden_dim, num_heads, intermediate_dim, windowed, **kwargs
    ):
        super().__init__(autocast=False, **kwargs)
        dtype = self.dtype_policy
        self.windowed = windowed
        self.norm_1 = vision_norm(family, dtype, "norm_1")
        self.attention = VisionAttention(
            hidden_dim, num_heads, dtype=dtype, name="attention"
        )
        self.norm_2 = vision_norm(family, dtype, "norm_2")
        self.mlp = VisionMLP(
            family, hidden_dim, intermediate_dim, dtype=dtype, name="mlp"
        )

    def build(self, input_shape):
        for layer in (self.norm_1, self.attention, self.norm_2, self.mlp):
            layer.build(input_shape)
        self.built = True

    def call(self, x, rotation, mask, windows=None):
        if self.windowed:
            mask = windows.mask
        else:
            windows = None
        x = x + self.attention(self.norm_1(x), rotation, mask, windows)
        return x + self.mlp(self.norm_2(x))
