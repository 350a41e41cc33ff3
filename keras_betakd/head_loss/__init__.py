"""LM head, cross-entropy and energies, fused into one operation or from full logits."""

from keras_betakd.head_loss.fused import HeadLoss, fused_head_loss

__all__ = [
    "HeadLoss",
    "fused_head_loss",
]
