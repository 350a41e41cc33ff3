"""Plain Keras models and batches small enough to check by hand."""

import keras
import numpy as np
from keras import ops

from keras_betakd import Energy

CLASSES = 5


class ConstantEnergy(Energy):
    """An energy whose value is known and whose gradient is zero."""

    def __init__(self, value=0.1, **kwargs):
        super().__init__(**kwargs)
        self.value = value

    def pointwise(self, teacher, student):
        return self.value + 0.0 * student[..., 0]


def no_task_loss(y, logits):
    """A cross-entropy of zero, so that the total is the energy term alone."""
    return 0.0 * logits[..., 0]


def linear_model(seed, positions=3, width=4, dropout=0.0):
    """(B, T, F) -> (B, T, V) by one dense layer with weights from a seed."""
    inputs = keras.Input((positions, width))
    x = keras.layers.Dropout(dropout, seed=0)(inputs) if dropout else inputs
    model = keras.Model(inputs, keras.layers.Dense(CLASSES)(x))
    rng = np.random.default_rng(seed)
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    return model


def token_batch(seed=0, batch=4, positions=3, width=4):
    """x, y and weights with a full, a short, an empty and a one-token example."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, positions, width)).astype("float32")
    y = rng.integers(0, CLASSES, size=(batch, positions))
    weight = np.ones((batch, positions), "float32")
    weight[1, 2:] = 0
    weight[2] = 0
    weight[3, 1:] = 0
    return x, y, weight


def log_softmax64(logits):
    logits = np.asarray(logits, "float64")
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def forward_kl64(teacher, student):
    log_p, log_q = log_softmax64(teacher), log_softmax64(student)
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)


def cross_entropy64(y, student):
    return -np.take_along_axis(log_softmax64(student), y[..., None], -1)[..., 0]


def example_mean64(values, weight):
    """Mean over an example's tokens, then over the examples that have any."""
    means = [
        (v * w).sum() / w.sum()
        for v, w in zip(values, weight, strict=True)
        if w.sum() > 0
    ]
    return float(np.mean(means)) if means else 0.0


def as_array(x):
    return ops.convert_to_numpy(x)
