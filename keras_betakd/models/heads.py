"""LM heads: how hidden states become logits, whole or as a matrix.

Whole, a head is a callable: rows (..., H) to logits (..., V). The fused loss
(`keras_betakd.fused`) also needs to see the student's as a matrix, since it takes the
gradient itself; a head that has none (quantised, or of an unknown kind) gives `None`,
and the distiller then computes its logits whole.
"""

import dataclasses
from typing import Any

from keras import ops


@dataclasses.dataclass(frozen=True)
class HeadMatrix:
    """A head as logits = soft_cap(rows @ kernel^T) + bias.

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
    """A `keras.layers.ReversibleEmbedding` used in reverse, soft cap included."""

    def __init__(self, embedding):
        super().__init__(lambda rows: embedding(rows, reverse=True))
        self.embedding = embedding

    @property
    def has_matrix(self):
        return self.embedding.quantization_mode is None

    def matrix(self):
        if not self.has_matrix:
            return None
        embedding = self.embedding
        common = {
            "dtype": embedding.reverse_dtype or embedding.compute_dtype,
            "soft_cap": embedding.logit_soft_cap,
        }
        if not embedding.tie_weights:
            kernel = embedding.reverse_embeddings
            trainable = kernel.trainable
            return HeadMatrix(ops.transpose(kernel), trainable, **common)
        kernel = ops.convert_to_tensor(embedding.embeddings)  # LoRA merged into it
        factors = self._lora_factors()
        others = [
            v
            for v in embedding.trainable_variables
            if not any(v is factor for factor in factors)
        ]
        if others or not factors:
            return HeadMatrix(kernel, bool(others), **common)
        up, down = (ops.convert_to_tensor(factor) for factor in factors)
        low_rank = (up, down, embedding.lora_alpha / embedding.lora_rank)
        kernel = ops.stop_gradient(kernel)
        return HeadMatrix(kernel, False, low_rank=low_rank, **common)

    def _lora_factors(self):
        embedding = self.embedding
        if not embedding.lora_enabled:
            return []
        return [embedding.lora_embeddings_a, embedding.lora_embeddings_b]
