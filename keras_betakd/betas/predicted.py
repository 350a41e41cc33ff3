"""Betas that a network predicts from the teacher, per example or per token."""

import keras
from keras import ops

from keras_betakd.betas.base import LearnedBeta
from keras_betakd.betas.teacher_features import (
    UNCERTAINTY_WIDTH,
    expect_hidden_states,
    teacher_features,
)


@keras.saving.register_keras_serializable(package="keras_betakd")
class InstanceBeta(LearnedBeta):
    """Beta predicted for each example: instance-level uncertainty.

    A small MLP (layer normalisation, one hidden layer, one output) maps features h(x)
    of the teacher, through which no gradient flows back, to log beta. Its optimum is
    beta(x) = d / (2 E[l | x]): examples on which the student stays far from the teacher
    get a smaller weight. The last layer is initialised with zeros, so that beta is
    `initial_value` at first.

    Args:
        dim, initial_value, min_value, max_value: as for `TaskBeta`; the bounds are
            approached smoothly.
        hidden_units: width of the hidden layer. Defaults to 64.
        features: the input of the network.
            `"hidden_states"` (default): the teacher's last hidden states, averaged over
            the positions that are not padding.
            `"uncertainty"`: entropy in nats, top probability and margin between the two
            most probable classes of the teacher, averaged over the supervised answer
            rows. Beta then depends on the teacher's confidence alone and cannot
            distinguish questions: better for small students and few examples, where the
            default does worse than a `TaskBeta` (`benchmarks/STUDY.md`). It needs the
            teacher's full logits (B, K, V) in memory, which the default does not.
            Or a callable that takes a `keras_betakd.TeacherOutputs` and returns (B, F);
            register it with `keras.saving` to save the distiller.
        multiplier: as for `TaskBeta`; defaults to 10, since the many weights of a
            network together change log beta faster than one scalar does.

    Raises:
        ValueError: as `TaskBeta`, and for unknown `features`.

    Reference: Beta-KD, arXiv 2603.21426 (CVPR 2026), instance level.
    """

    uses_features = True
    per_token = False
    default_multiplier = 10.0

    def __init__(
        self,
        dim=1.0,
        initial_value=1.0,
        min_value=0.01,
        max_value=100.0,
        hidden_units=64,
        features="hidden_states",
        multiplier=None,
        name=None,
        **kwargs,
    ):
        super().__init__(
            dim=dim,
            initial_value=initial_value,
            min_value=min_value,
            max_value=max_value,
            multiplier=multiplier,
            name=name,
            **kwargs,
        )
        if isinstance(features, dict):
            features = keras.saving.deserialize_keras_object(features)
        self.hidden_units = hidden_units
        self.features = features
        self._features_of = teacher_features(features)
        self.normalization = keras.layers.LayerNormalization(
            center=False, scale=False, dtype="float32", name="normalization"
        )
        self.hidden = keras.layers.Dense(
            hidden_units, activation="gelu", dtype="float32", name="hidden"
        )
        self.raw = keras.layers.Dense(
            1, kernel_initializer="zeros", dtype="float32", name="raw_log_beta"
        )

    @property
    def reads_logits(self):
        return self.features != "hidden_states"

    def features_of(self, teacher):
        return ops.stop_gradient(self._features_of(teacher, per_token=self.per_token))

    def features_width(self, teacher_view):
        if self.features == "hidden_states":
            return expect_hidden_states(teacher_view).hidden_dim
        return UNCERTAINTY_WIDTH if self.features == "uncertainty" else None

    def build(self, weights_shape, features_shape):
        self.normalization.build(features_shape)
        self.hidden.build(features_shape)
        self.raw.build((*features_shape[:-1], self.hidden_units))

    def log_beta(self, features):
        raw = self.raw(self.hidden(self.normalization(features)))
        # One value per example, (B, 1), or per row, (B, K, 1) -> (B, K).
        return self.bounded(ops.squeeze(raw, -1) if self.per_token else raw)

    def get_config(self):
        features = self.features
        if not isinstance(features, str):
            features = keras.saving.serialize_keras_object(features)
        return {
            **super().get_config(),
            "hidden_units": self.hidden_units,
            "features": features,
        }


@keras.saving.register_keras_serializable(package="keras_betakd")
class TokenBeta(InstanceBeta):
    """Beta predicted for each answer token.

    An `InstanceBeta` on the features of each answer row: the teacher's hidden state or
    uncertainty at that row. A callable must return (B, K, F). Rows that are not
    supervised add neither an energy nor a log beta to the loss.

    Args: as for `InstanceBeta`.
    """

    per_token = True
