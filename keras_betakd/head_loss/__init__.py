"""The LM head, the cross-entropy and the energies, computed in one place."""

from keras_betakd.head_loss.fused import fused_head_loss
