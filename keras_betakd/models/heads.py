"""LM heads: how hidden states become logits, whole or as a matrix.

Whole, a head is a callable: rows (..., H) to logits (..., V). The fused loss
(`keras_betakd.head_loss`) also needs to see the student's as a matrix, since it takes
the gradient itself; a head that has none (quantised, or of an unknown kind) gives
`None`, and the distiller then computes its logits whole. The teacher's it multiplies by
faster as a matrix, but takes as it is, too.
"""

import dataclasses
from typing import Any

import keras
from keras import ops

from keras_betakd.backends import logits_of


@dataclasses.dataclass(frozen=True)
class HeadMatrix:
    """A head as logits = soft_cap(rows @ kernel^T) + bias.

    Called, it gives the logits (..., V) of rows (..., H) in float32, without gradients.

    Attributes:
        kernel: (V, H).
        trainable: whether the kernel gets a gradient.
        dtype: what the products are computed in.
        bias: (V,), or `None`; -inf excludes a class.
        soft_cap: c of c tanh(logits / c), or `None`.
        low_rank: `None`, or (A, B, scale) with A (V, r) and B (r, H) trainable and
            scale A B already part of the kernel (LoRA).
    """

    kernel: Any
    trainable: bool = True
    dtype: str = "float32"
    bias: Any = None
    soft_cap: float | None = None
    low_rank: tuple | None = None

    def __call__(self, rows):
        logits = self.without_bias(rows)
        return logits if self.bias is None else logits + self.bias

    def without_bias(self, rows):
        """The logits but for the bias."""
        kernel = ops.cast(self.kernel, self.dtype)
        logits = logits_of(ops.cast(rows, self.dtype), kernel)
        return ops.cast(capped(logits, self.soft_cap), "float32")


class LMHead:
    """A head known only as a whole.

    Args:
        function: (..., H) to (..., V).
    """

    def __init__(self, function):
        self.function = function

    def __call__(self, rows):
        return self.function(rows)

    @property
    def has_matrix(self):
        """Whether `matrix` gives one; it may cost a copy of the head (LoRA)."""
        return False

    def matrix(self):
        """The head as a `HeadMatrix`, or `None`."""
        return None


class EmbeddingHead(LMHead):
    """A `keras.layers.ReversibleEmbedding` used in reverse, its soft cap included.

    Args:
        embedding: the layer.
        soft_cap: c of a cap c tanh(logits / c) that the model adds to the layer's, or
            `None`.
    """

    def __init__(self, embedding, soft_cap=None):
        super().__init__(lambda rows: capped(embedding(rows, reverse=True), soft_cap))
        self.embedding = embedding
        self.soft_cap = soft_cap

    @property
    def has_matrix(self):
        capped_twice = self.soft_cap and self.embedding.logit_soft_cap
        return self.embedding.quantization_mode is None and not capped_twice

    def matrix(self):
        if not self.has_matrix:
            return None
        embedding = self.embedding
        dtype = embedding.reverse_dtype or embedding.compute_dtype
        cap = self.soft_cap or embedding.logit_soft_cap
        if not embedding.tie_weights:
            kernel = embedding.reverse_embeddings
            trainable = kernel.trainable
            return HeadMatrix(ops.transpose(kernel), trainable, dtype, soft_cap=cap)
        return _tied_matrix(embedding, dtype, cap)


class TransposedEmbeddingHead(LMHead):
    """A plain `keras.layers.Embedding` whose weights are the head as well (Gemma 3n).

    Args:
        embedding: the layer.
        soft_cap: c of c tanh(logits / c), or `None`.
    """

    def __init__(self, embedding, soft_cap=None):
        super().__init__(self._logits)
        self.embedding = embedding
        self.soft_cap = soft_cap

    def _logits(self, rows):
        kernel = ops.convert_to_tensor(self.embedding.embeddings)
        if self.embedding.quantization_mode is not None:  # integers without a scale
            kernel = self.embedding(ops.arange(self.embedding.input_dim))
        return capped(ops.matmul(rows, ops.transpose(kernel)), self.soft_cap)

    @property
    def has_matrix(self):
        return self.embedding.quantization_mode is None

    def matrix(self):
        if not self.has_matrix:
            return None
        layer = self.embedding
        # As keras-hub multiplies: outside the layer, so that nothing casts the weights.
        dtype = keras.backend.result_type(layer.compute_dtype, layer.variable_dtype)
        return _tied_matrix(layer, dtype, self.soft_cap)


class DenseHead(LMHead):
    """A `keras.layers.Dense` without activation."""

    def __init__(self, layer):
        super().__init__(layer)
        self.layer = layer

    @property
    def has_matrix(self):
        linear = self.layer.activation in (None, keras.activations.linear)
        return self.layer.quantization_mode is None and linear

    def matrix(self):
        if not self.has_matrix:
            return None
        layer = self.layer
        kernel = ops.transpose(ops.convert_to_tensor(layer.kernel))  # LoRA merged
        up = down = None
        if layer.lora_enabled:
            up, down = (
                ops.transpose(v) for v in (layer.lora_kernel_b, layer.lora_kernel_a)
            )
        others = _without(layer.trainable_variables, _lora_factors(layer))
        trainable = any(v.ndim == 2 for v in others)
        return _matrix(layer, kernel, (up, down), trainable, layer.compute_dtype)


class CroppedHead(LMHead):
    """The first classes of a head: what two vocabularies have in common.

    Args:
        head: an `LMHead`.
        size: how many classes to keep. The rest, never normalised over, gets no
            probability and no gradient.
    """

    def __init__(self, head, size):
        super().__init__(lambda rows: head(rows)[..., :size])
        self.head = head
        self.size = size

    @property
    def has_matrix(self):
        return self.head.has_matrix

    def matrix(self):
        matrix = self.head.matrix()
        if matrix is None:
            return None
        parts = {"kernel": matrix.kernel[: self.size]}
        if matrix.bias is not None:
            parts["bias"] = matrix.bias[: self.size]
        if matrix.low_rank is not None:
            up, down, scale = matrix.low_rank
            parts["low_rank"] = up[: self.size], down, scale
        return dataclasses.replace(matrix, **parts)


def capped(logits, soft_cap):
    """c tanh(logits / c) with c the soft cap; the logits if it is `None`."""
    if soft_cap is None:
        return logits
    return soft_cap * ops.tanh(logits / soft_cap)


def _tied_matrix(embedding, dtype, soft_cap):
    kernel = ops.convert_to_tensor(embedding.embeddings)  # LoRA merged into it
    factors = _lora_factors(embedding) or (None, None)
    trainable = bool(_without(embedding.trainable_variables, factors))
    return _matrix(embedding, kernel, factors, trainable, dtype, soft_cap)


def _matrix(layer, kernel, factors, trainable, dtype, soft_cap=None):
    """A `HeadMatrix`; the factors of LoRA alone are trained where the rest is not."""
    bias = getattr(layer, "bias", None)
    bias = None if bias is None else ops.convert_to_tensor(bias)
    common = {"dtype": dtype, "bias": bias, "soft_cap": soft_cap}
    if trainable or not _lora_factors(layer):
        return HeadMatrix(kernel, trainable, **common)
    up, down = (ops.convert_to_tensor(factor) for factor in factors)
    low_rank = (up, down, layer.lora_alpha / layer.lora_rank)
    return HeadMatrix(ops.stop_gradient(kernel), False, low_rank=low_rank, **common)


def _lora_factors(layer):
    """The two variables that LoRA added to a layer, if it did."""
    if not layer.lora_enabled:
        return ()
    if hasattr(layer, "lora_embeddings_a"):
        return layer.lora_embeddings_a, layer.lora_embeddings_b
    return layer.lora_kernel_a, layer.lora_kernel_b


def _without(variables, left_out):
    return [v for v in variables if not any(v is other for other in left_out)]
