"""The distiller: teacher and student trained as one `keras.Model`."""

from keras_betakd.distillation.distiller import BetaKDDistiller

__all__ = [
    "BetaKDDistiller",
]
