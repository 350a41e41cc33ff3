"""The decoder blocks of Qwen2-VL, Qwen2.5-VL and Qwen3-VL."""

import keras
from keras import ops

from keras_betakd.qwen_vl.rotary import Rotation


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

    # What `keras_betakd.models.attention` reads, as keras-hub's Gemma has it.
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
        self.rope_layer.build(None)  # a layer that is not built cannot be quantised
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
