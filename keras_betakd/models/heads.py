"""LM heads: map hidden states to logits, as a function or as a matrix.

Every head is a callable: rows (..., H) to logits (..., V). The fused loss
(`keras_betakd.head_loss`) computes the gradient of the student's head itself and so
needs it as a matrix; a head without one (quantised, or of an unknown kind) returns
`None`, and the distiller then computes the full logits. The teacher's head is faster as
a matrix, but a function will do.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_betakd.backends import logits_of


@dataclasses.dataclass(frozen=True)
class HeadMatrix:
    """An LM head as a matrix: logits = c tanh(rows kernel^T / c) + bias.

    A call returns the logits (..., V) of rows (..., H) in float32, without gradients.

    Attributes:
        kernel: (V, H).
        trainable: whether the kernel gets a gradient.
        dtype: the dtype of the products.
        bias: (V,), or `None`; -inf excludes a class.
        soft_cap: c, or `None` for logits = rows kernel^T + bias.
        low_rank: `None`, or (A, B, scale) with A (V, r) and B (r, H) trainable and
            scale A B already part of the kernel (LoRA).

    Example:

    >>> head = HeadMatrix(kernel=ops.ones((5, 3)))  # V = 5, H = 3
    >>> tuple(head(ops.ones((2, 3))).shape)
    (2, 5)
    """

    kernel: Any
    trainable: bool = True
    dtype: str = "float32"
    bias: Any = None
    soft_cap: float | None = None
    low_rank: tuple | None = None

    def __call__(self, rows: Any) -> Any:
        logits = self.without_bias(rows)
        return logits if self.bias is None else logits + self.bias

    def without_bias(self, rows: Any) -> Any:
        """The logits without the bias."""
        kernel = ops.cast(self.kernel, self.dtype)
        logits = logits_of(ops.cast(rows, self.dtype), kernel)
        return ops.cast(capped(logits, self.soft_cap), "float32")


class LMHead:
    """A head that is a function alone; the base of those that have a matrix.

    Args:
        function: rows (..., H) to logits (..., V).
    """

    def __init__(self, function: Callable[[Any], Any]):
        self.function = function

    def __call__(self, rows: Any) -> Any:
        return self.function(rows)

    @property
    def has_matrix(self) -> bool:
        """Whether `matrix` returns one; that may cost a copy of the head (LoRA)."""
        return False

    def matrix(self) -> HeadMatrix | None:
        """The head as a `HeadMatrix`, or `None`."""
        return None


class EmbeddingHead(LMHead):
    """A `keras.layers.ReversibleEmbedding` used in reverse, its soft cap included.

    Args:
        embedding: the layer.
        soft_cap: c of a soft cap c tanh(logits / c) that the model applies after the
            layer's own, or `None`.
    """

    def __init__(
        self, embedding: keras.layers.ReversibleEmbedding, soft_cap: float | None = None
    ):
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
    """A plain `keras.layers.Embedding` with the head's weights, too (Gemma 3n).

    Args:
        embedding: the layer.
        soft_cap: c of c tanh(logits / c), or `None`.
    """

    def __init__(
        self, embedding: keras.layers.Embedding, soft_cap: float | None = None
    ):
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
        # keras-hub multiplies outside the layer, so that nothing casts the weights.
        dtype = keras.backend.result_type(layer.compute_dtype, layer.variable_dtype)
        return _tied_matrix(layer, dtype, self.soft_cap)


class DenseHead(LMHead):
    """A `keras.layers.Dense` without activation."""

    def __init__(self, layer: keras.layers.Dense):
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
    """The first classes of a head: those that two vocabularies have in common.

    Args:
        head: an `LMHead`.
        size: the number of classes to keep. The softmax leaves the others out, so that
            they get no probability and no gradient.
    """

    def __init__(self, head: LMHead, size: int):
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
    """Makes a `HeadMatrix`, with LoRA's factors where they alone are trainable."""
    bias = getattr(layer, "bias", None)
    bias = None if bias is None else ops.convert_to_tensor(bias)
    common = {"dtype": dtype, "bias": bias, "soft_cap": soft_cap}
    if trainable or not _lora_factors(layer):
        return HeadMatrix(kernel, trainable, **common)
    up, down = (ops.convert_to_tensor(factor) for factor in factors)
    low_rank = (up, down, layer.lora_alpha / layer.lora_rank)
    return HeadMatrix(ops.stop_gradient(kernel), False, low_rank=low_rank, **common)


def _lora_factors(layer):
    """The two variables that LoRA added to a layer; empty if it has none."""
    if not layer.lora_enabled:
        return ()
    if hasattr(layer, "lora_embeddings_a"):
        return layer.lora_embeddings_a, layer.lora_embeddings_b
    return layer.lora_kernel_a, layer.lora_kernel_b


def _without(variables, left_out):
    return [v for v in variables if not any(v is other for other in left_out)]
