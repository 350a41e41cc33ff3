"""The decoder of Qwen2-VL, Qwen2.5-VL and Qwen3-VL: rotary positions of three axes."""

import keras
import numpy as np
from keras import ops

from keras_betakd.qwen_vl.patch_grid import rotated


def rotary_axes(sections, interleaved):
    """The axis (0 time, 1 row, 2 column) by which each rotary pair turns: a list.

    Args:
        sections: how many pairs each of the three axes has.
        interleaved: whether the axes take turns (Qwen3-VL: 0 1 2 0 1 2 ... 0 0); else
            one section follows another.

    Example:

    >>> rotary_axes((2, 1, 1), interleaved=False), rotary_axes((2, 1, 1), True)
    ([0, 0, 1, 2], [0, 1, 2, 0])
    """
    if not interleaved:
        return [axis for axis, size in enumerate(sections) for _ in range(size)]
    return [
        pair % 3 if pair < 3 * sections[pair % 3] else 0
        for pair in range(sum(sections))
    ]


@keras.saving.register_keras_serializable(package="keras_betakd")
class RotaryAngles(keras.layers.Layer):
    """Cosine and sine of the rotary angles of positions with three axes.

    Pair j = 0 ... d / 2 - 1 of a head turns by position[axis(j)] * wavelength^(-2j/d).

    Args:
        head_dim: int, d.
        sections: three ints, pairs of each axis; their sum is d / 2.
        interleaved: as for `rotary_axes`.
        max_wavelength: the base of the frequencies.
        **kwargs: as for any layer.

    Call arguments:
        position_ids: int (B, 3, T).

    Returns:
        Two float32 arrays, (B, T, 1, d).
    """

    def __init__(self, head_dim, sections, interleaved, max_wavelength, **kwargs):
        super().__init__(autocast=False, **kwargs)
        if len(sections) != 3 or 2 * sum(sections) != head_dim:
            raise ValueError(
                "`rope_sections` must be three numbers of pairs that add up to half of "
                f"`head_dim`, {head_dim}. Received: rope_sections={tuple(sections)}"
            )
        self.head_dim = head_dim
        self.sections = tuple(sections)
        self.interleaved = interleaved
        self.max_wavelength = max_wavelength
        pairs = np.arange(head_dim // 2, dtype="float64")
        self._frequencies = (max_wavelength ** (-2 * pairs / head_dim)).astype(
            "float32"
        )
        self._axes = np.array(rotary_axes(sections, interleaved), "int32")

    def build(self, input_shape):
        self.built = True

    def call(self, position_ids):
        by_axis = ops.transpose(ops.cast(position_ids, "float32"), (0, 2, 1))
        frequencies = ops.convert_to_tensor(self._frequencies)
        axes = ops.convert_to_tensor(self._axes)
        angles = ops.take(by_axis, axes, axis=-1) * frequencies
        angles = ops.concatenate([angles, angles], axis=-1)[:, :, None]
        return ops.cos(angles), ops.sin(angles)

    def compute_output_spec(self, position_ids):
        shape = (position_ids.shape[0], position_ids.shape[2], 1, self.head_dim)
        return tuple(keras.KerasTensor(shape, "float32") for _ in range(2))

    def get_config(self):
        names = "head_dim sections interleaved max_wavelength"
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in names.split()},
        }


class Rotation(keras.layers.Layer):
    """Rotates queries or keys, (B, T, heads, d), by the angles of `RotaryAngles`."""

    def build(self, input_shape):
        self.built = True

    def call(self, x, cosine, sine):
        return rotated(x, cosine, sine)


class DecoderAttention(keras.layers.Layer):
    """Self-attention with grouped keys and values.

    Call arguments:
        x: (B, t, H).
        rotation: cosine and sine, (B, t, 1, head_dim) each.
        attention_mask: bool (B or 1, t, T), true where a position may be attended to.
        cache: (B, 2, T, key-value heads, head_dim), keys and values so far, or `None`.
        cache_update_index: int, where the t positions stand in the T of the cache.

    Returns:
        (B, t, H); with a cache also the updated cache.
    """

    # What `keras_betakd.models.attention` reads of a layer, as keras-hub's Gemma has it.
    query_head_dim_normalize = True
    logit_soft_cap = None
    use_sliding_window_attention = False

    def __init__(
        self,
        num_query_heads,
        num_key_value_heads,
        head_dim,
        use_bias,
        qk_norm,
        layer_norm_epsilon,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_query_heads = num_query_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim
        self._use_bias = use_bias
        dtype = self.dtype_policy
        self.rope_layer = Rotation(dtype=dtype, name="rotation")
        self.query_norm = self.key_norm = None
        if qk_norm:
            self.query_norm, self.key_norm = (
                keras.layers.RMSNormalization(
                    epsilon=layer_norm_epsilon, dtype=dtype, name=name
                )
                for name in ("query_norm", "key_norm")
            )

    def build(self, input_shape):
        width = input_shape[-1]
        heads = {
            "query": self.num_query_heads,
            "key": self.num_key_value_heads,
            "value": self.num_key_value_heads,
        }
        for name, count in heads.items():
            layer = keras.layers.EinsumDense(
                "bth,hnd->btnd",
                output_shape=(None, count, self.head_dim),
                bias_axes="nd" if self._use_bias else None,
                dtype=self.dtype_policy,
                name=name,
            )
            layer.build((None, None, width))
            setattr(self, name, layer)
        self.attention_output = keras.layers.EinsumDense(
            "btnd,ndh->bth",
            output_shape=(None, width),
            dtype=self.dtype_policy,
            name="attention_output",
        )
        self.attention_output.build((None, None, self.num_query_heads, self.head_dim))
        for norm in (self.query_norm, self.key_norm):
            if norm is not None:
                norm.build((None, None, None, self.head_dim))
        self.built = True

    def call(
        self, x, rotation, attention_mask=None, cache=None, cache_update_index=None
    ):
        query, key, value = self.query(x), self.key(x), self.value(x)
        if self.query_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        query, key = self.rope_layer(query, *rotation), self.rope_layer(key, *rotation)
        if cache is not None:
            update = ops.stack([key, value], axis=1)
            start = [0, 0, cache_update_index, 0, 0]
            cache = ops.slice_update(cache, start, ops.cast(update, cache.dtype))
            key, value = cache[:, 0], cache[:, 1]
        groups = self.num_query_heads // self.num_key_value_heads
        if groups > 1:
            key, value = (ops.repeat(part, groups, axis=2) for part in (key, value))
        found = ops.dot_product_attention(
            query, key, value, mask=attention_mask[:, None]
        )
        found = self.attention_output(found)
        return found if cache is None else (found, cache)

    def compute_output_shape(self, input_shape):
        return input_shape


class DecoderBlock(keras.layers.Layer):
    """A pre-norm decoder block; arguments and returns are those of `DecoderAttention`.

    x + attention(norm(x)), then + down(silu(gate(y)) * up(y)) with y = norm(x).
    """

    def __init__(
        self,
        num_query_heads,
        num_key_value_heads,
        head_dim,
        intermediate_dim,
        use_bias,
        qk_norm,
        layer_norm_epsilon,
        **kwargs,
    ):
        super().__init__(**kwargs)
        dtype = self.dtype_policy
        self.intermediate_dim = intermediate_dim
        self.self_attention = DecoderAttention(
            num_query_heads,
            num_key_value_heads,
            head_dim,
            use_bias,
            qk_norm,
            layer_norm_epsilon,
            dtype=dtype,
            name="self_attention",
        )
        self.self_attention_layernorm, self.feedforward_layernorm = (
            keras.layers.RMSNormalization(
                epsilon=layer_norm_epsilon, dtype=dtype, name=name
            )
            for name in ("self_attention_layernorm", "feedforward_layernorm")
        )

    def build(self, input_shape):
        width, inner = input_shape[-1], self.intermediate_dim
        shapes = {"gate": (width, inner), "intermediate": (width, inner)}
        shapes["output"] = (inner, width)
        for name, (inputs, outputs) in shapes.items():
            layer = keras.layers.Dense(
                outputs,
                use_bias=False,
                dtype=self.dtype_policy,
                name=f"feedforward_{name}_dense",
            )
            layer.build((None, None, inputs))
            setattr(self, layer.name, layer)
        self.self_attention.build(input_shape)
        self.self_attention_layernorm.build(input_shape)
        self.feedforward_layernorm.build(input_shape)
        self.built = True

    def call(
        self, x, rotation, attention_mask=None, cache=None, cache_update_index=None
    ):
        found = self.self_attention(
            self.self_attention_layernorm(x),
            rotation,
            attention_mask=attention_mask,
            cache=cache,
            cache_update_index=cache_update_index,
        )
        if cache is not None:
            found, cache = found
        x = x + found
        y = self.feedforward_layernorm(x)
        inner = ops.silu(self.feedforward_gate_dense(y))
        inner = inner * self.feedforward_intermediate_dense(y)
        x = x + self.feedforward_output_dense(inner)
        return x if cache is None else (x, cache)

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable(package="keras_betakd")
class CausalMask(keras.layers.Layer):
    """True where a position may attend to another: bool (B, T, T).

    To itself and to earlier ones that are no padding. Padding attends to itself, so
    that its softmax is over something.
    """

    def build(self, input_shape):
        self.built = True

    def call(self, padding_mask):
        places = ops.arange(ops.shape(padding_mask)[1], dtype="int32")
        earlier = (places[:, None] > places[None])[None]
        visible = ops.logical_and(earlier, ops.cast(padding_mask, "bool")[:, None])
        return ops.logical_or(visible, (places[:, None] == places[None])[None])

    def compute_output_spec(self, padding_mask):
        batch, length = padding_mask.shape
        return keras.KerasTensor((batch, length, length), "bool")


@keras.saving.register_keras_serializable(package="keras_betakd")
class ImageTokens(keras.layers.Layer):
    """Image tokens at their positions in the text, zeros elsewhere.

    Call arguments:
        features: (B, M, N, H), N tokens of each of M images, padding included.
        image_sources: int (B, T), the number j * N + k of token k of image j at each
            position; -1 for text.

    Returns:
        (B, T, H).
    """

    def build(self, input_shape):
        self.built = True

    def call(self, features, image_sources):
        width = features.shape[-1]
        tokens = ops.reshape(features, (ops.shape(features)[0], -1, width))
        source = ops.cast(image_sources, "int32")[..., None]
        found = ops.take_along_axis(tokens, ops.maximum(source, 0), axis=1)
        return ops.where(source >= 0, found, ops.zeros_like(found))

    def compute_output_shape(self, features_shape, image_sources_shape):
        return (*image_sources_shape, features_shape[-1])
