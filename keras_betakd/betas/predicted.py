"""Betas that a network predicts from the teacher, per example or per token."""

import math
import warnings
from collections.abc import Callable

import keras
from keras import ops

from keras_betakd.betas.base import DEFAULT_SPEED, LearnedBeta
from keras_betakd.betas.running_mean import RunningMean
from keras_betakd.betas.teacher_features import (
    UNCERTAINTY_WIDTH,
    expect_hidden_states,
    teacher_features,
)
from keras_betakd.objective import weighted_sum


@keras.saving.register_keras_serializable(package="keras_betakd")
class InstanceBeta(LearnedBeta):
    """Beta predicted for each example: instance-level uncertainty.

    A small MLP (layer normalisation, one hidden layer, one output) maps features h(x)
    of the teacher, through which no gradient flows back, to log beta. Its optimum is
    beta(x) = d / (2 E[l | x]): examples on which the student stays far from the teacher
    get a smaller weight. The last layer is initialised with zeros, so that beta is
    `initial_value` at first.

    **Shrinkage.** At that optimum an example pulls at the student in proportion to
    1 / l: where the features tell one question from another, as hidden states do, those
    that the student has learnt fill the gradient, and hard ones are starved of it.
    `shrinkage`, kappa, draws beta(x) towards the beta of the mean energy m, as a Gamma
    prior worth kappa examples would. The term of the loss is then

        sum_i w_i [ beta_i (l_i + kappa m) - (1 + kappa) (d / 2) log beta_i ]

        beta(x) = (1 + kappa) (d / 2) / (E[l | x] + kappa m)

    with w the row weights and m a running mean of l without gradient (d /
    (2 initial_value) before the first step). No example then counts more than
    (1 + kappa) / kappa times one of mean energy. 0 is the paper's formula; as kappa
    grows, beta comes to that of an `AnalyticBeta`. What it adds to the reported loss is
    constant in the student.

    Args:
        dim, initial_value, min_value, max_value: as for `TaskBeta`; the bounds are
            approached smoothly.
        hidden_units: width of the hidden layer. Defaults to 64.
        features: the input of the network.
            `"uncertainty"` (default): entropy in nats, top probability and margin
            between the two most probable classes of the teacher, averaged over the
            supervised answer rows. Beta then depends on the teacher's confidence alone
            and cannot tell one question from another. It needs nothing but logits, and
            holds those of a few rows at a time where the fused head does.
            `"hidden_states"`: the teacher's last hidden states, averaged over the
            positions that are not padding. Give them a `shrinkage` of 4 to 16.
            Or a callable that takes a `keras_betakd.TeacherOutputs`, with its `logits`
            and `uncertainty`, and returns (B, F); register it with `keras.saving` to
            save the distiller.
        shrinkage: kappa, at least 0. Defaults to 0.
        speed: about how much log beta changes per step at first, see
            `keras_betakd.betas`. Defaults to 0.1.
        multiplier: as for `TaskBeta`.

    Raises:
        ValueError: as `TaskBeta`, for unknown `features`, and for a `shrinkage` below
            0.

    A `UserWarning` advises against `features="hidden_states"` without `shrinkage`.

    Example:

    >>> from keras import ops
    >>> from keras_betakd import InstanceBeta
    >>> beta = InstanceBeta(initial_value=2.0)
    >>> weights = ops.array([[0.5, 0.0], [0.25, 0.25]])  # (B, K), two examples
    >>> uncertainty = ops.array([[0.1, 0.9, 0.8], [1.0, 0.4, 0.1]])  # (B, F)
    >>> log_beta = beta(weights, uncertainty)  # (B, 1), before any training
    >>> [[round(float(x), 4) for x in row] for row in ops.exp(log_beta)]
    [[2.0], [2.0]]

    Reference: Beta-KD, arXiv 2603.21426 (CVPR 2026), instance level. The starved
    examples: Seitzer et al., On the Pitfalls of Heteroscedastic Uncertainty Estimation,
    ICLR 2022.
    """

    uses_features = True
    per_token = False
    default_multiplier = 10.0

    def __init__(
        self,
        dim: float = 1.0,
        initial_value: float = 1.0,
        min_value: float = 0.01,
        max_value: float = 100.0,
        hidden_units: int = 64,
        features: str | Callable = "uncertainty",
        shrinkage: float = 0.0,
        speed: float = DEFAULT_SPEED,
        multiplier: float | None = None,
        name: str | None = None,
        **kwargs,
    ):
        super().__init__(
            dim=dim,
            initial_value=initial_value,
            min_value=min_value,
            max_value=max_value,
            speed=speed,
            multiplier=multiplier,
            name=name,
            **kwargs,
        )
        if isinstance(features, dict):
            features = keras.saving.deserialize_keras_object(features)
        self.hidden_units = hidden_units
        self.features = features
        self._features_of = teacher_features(features)
        self.shrinkage = expect_shrinkage(shrinkage, features)
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
    def learning_rate(self):
        # A step of Adam moves the output's weights and bias by one learning rate each,
        # which adds up over the hidden units. At the start, the mean of one is that of
        # gelu(x), with x normal and of this variance.
        width = self.hidden.kernel.shape[0]
        variance = 2 * width / (width + self.hidden_units)
        mean = variance / math.sqrt(2 * math.pi * (1.0 + variance))
        return self.speed / (self.multiplier * (1.0 + self.hidden_units * mean))

    @property
    def reads_logits(self):
        return callable(self.features)

    @property
    def reads_uncertainty(self):
        reads = callable(self.features) or self.features == "uncertainty"
        return reads or super().reads_uncertainty

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
        if self.shrinkage:
            self._mean_energy = RunningMean(self)

    def penalty(self, log_beta, weights):
        penalty, kappa = super().penalty(log_beta, weights), self.shrinkage
        if not kappa:
            return penalty
        prior = kappa * self._mean_energy.value(self.initial_energy)
        of_prior = prior * weighted_sum(ops.exp(log_beta), weights)
        return (1.0 + kappa) * penalty + of_prior

    def update(self, energy, weights):
        if self.shrinkage:
            self._mean_energy.update(energy, weights)

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
            "shrinkage": self.shrinkage,
        }


@keras.saving.register_keras_serializable(package="keras_betakd")
class TokenBeta(InstanceBeta):
    """Beta predicted for each answer token.

    An `InstanceBeta` on the features of each answer row: the teacher's hidden state or
    uncertainty at that row. A callable must return (B, K, F). Rows that are not
    supervised add neither an energy nor a log beta to the loss.

    Arguments and errors are those of `InstanceBeta`.

    Example:

    ```python
    distiller = BetaKDDistiller(
        teacher, student, energies=ForwardKLEnergy(), beta=TokenBeta(dim=1.0)
    )
    ```

    Reference: Beta-KD, arXiv 2603.21426 (CVPR 2026), whose instance level this applies
    to tokens.
    """

    per_token = True


def expect_shrinkage(shrinkage, features):
    """Returns `shrinkage` as a float; raises unless it is finite and at least 0."""
    if not 0 <= shrinkage < float("inf"):
        raise ValueError(
            "`shrinkage` must be a finite number, at least 0. Received: "
            f"shrinkage={shrinkage}"
        )
    if features == "hidden_states" and not shrinkage:
        warnings.warn(
            'A beta predicted from `features="hidden_states"` without `shrinkage` '
            "gives most of the gradient to questions that the student has learnt "
            "already, and does worse than one `TaskBeta` in our study "
            "(docs/study.md). Use `shrinkage=4.0`, or the default features.",
            stacklevel=4,
        )
    return float(shrinkage)
