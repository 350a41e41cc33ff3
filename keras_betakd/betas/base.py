"""Base classes of the beta layers: penalty, bounds and speed."""

import math
from collections.abc import Callable

import keras
from keras import ops

from keras_betakd.objective import log_beta_penalty, normalised, sped_up

DEFAULT_SPEED = 0.1  # of log beta, per step


def positive(name, value):
    """Returns `value` as a float; raises unless it is positive and finite."""
    if not value > 0 or not math.isfinite(value):
        raise ValueError(
            f"`{name}` must be a positive finite number. Received: {name}={value}"
        )
    return float(value)


class Beta(keras.layers.Layer):
    """Base class of the beta layers; a subclass implements `log_beta`.

    A call returns log beta and adds -(d / 2) times its mean over the rows through
    `add_loss`. See `keras_betakd.betas` for the formula and the choice of d.

    Args:
        dim: d, positive; the weight of the teacher relative to the cross-entropy.
            Defaults to 1.
        row_weights: `None` (default), or a callable that says how much the rows of
            this energy count beside each other: it takes a `keras_betakd.
            TeacherOutputs`, with `uncertainty` (B, K, 3), and log beta, (B, 1) or
            (B, K), and returns factors v of one of these two shapes, none negative
            ((B, 1) where the energy is not at the answer's rows). Energy and log beta
            are then averaged with the weights w v / sum(w v) in the place of w, and no
            gradient flows through v. A batch with a factor that is negative or not
            finite is skipped and reported, as with any number that is none
            (`on_nonfinite`); one whose factors are all 0 has no rows of this energy.
            Register it with `keras.saving` to save the distiller. Examples are in the
            guide "Betas".

    Call arguments:
        weights: (B, K) row weights that add up to one
            (`keras_betakd.objective.row_weights`).
        features: the result of `features_of`, or `None`.

    Returns:
        log beta, float32, broadcastable to (B, K).

    Attributes:
        bounds: the least and the greatest value of beta; both are its value where it is
            fixed.
        learning_rate: of the distiller's own Adam for the betas' trainable variables
            (see "Speed" in `keras_betakd.betas`), which the student's optimizer does
            not move.

    Raises:
        ValueError: at construction, if `dim` is not positive and finite.

    Example:

    >>> class HalvingBeta(Beta):
    ...     def log_beta(self, features):
    ...         return -ops.log(2.0)
    >>> beta = HalvingBeta(dim=2.0)
    >>> round(float(beta(weights=ops.array([[0.5, 0.5]]))), 4)
    -0.6931
    >>> round(float(beta.losses[0]), 4)  # -(d / 2) * log beta
    0.6931
    """

    # The least and the greatest beta; without limits as far as float32 can tell.
    bounds = (1e-30, 1e30)
    learning_rate = 1e-3
    uses_features = False  # whether `call` needs `features`
    reads_logits = False  # whether `features_of` needs the teacher's logits

    def __init__(
        self,
        dim: float = 1.0,
        name: str | None = None,
        row_weights: Callable | None = None,
        **kwargs,
    ):
        # Always float32, since in bfloat16 1 + 1e-4 is 1.
        kwargs.pop("dtype", None)
        super().__init__(name=name, dtype="float32", **kwargs)
        self.dim = positive("dim", dim)
        if isinstance(row_weights, dict):
            row_weights = keras.saving.deserialize_keras_object(row_weights)
        if row_weights is not None and not callable(row_weights):
            raise ValueError(
                "`row_weights` must be `None`, or a callable that takes a "
                "`TeacherOutputs` and log beta and returns (B, K) or (B, 1). Received: "
                f"row_weights={row_weights!r}"
            )
        self.row_weights = row_weights

    @property
    def reads_uncertainty(self):
        """Whether it needs what `uncertainty_of` makes of the teacher's logits."""
        return self.row_weights is not None

    def features_of(self, teacher):
        """The features for `call`; `None` if it uses none.

        Args:
            teacher: a `TeacherOutputs`.
        """
        return None

    def features_width(self, teacher_view):
        """The width of the features; `None` if only a batch tells it.

        Args:
            teacher_view: the teacher's `keras_betakd.models.ModelView`.
        """
        return None

    def weighted_rows(self, weights, features, teacher, at_answer=True):
        """The row weights of the energy: `weights`, or these times `row_weights`.

        Args:
            weights: (B, N) row weights that add up to one, N being K for an energy at
                the answer's rows.
            features: as for a call.
            teacher: a `TeacherOutputs`.
            at_answer: whether the rows are those of the answer. Others may be as many
                by chance.

        Returns:
            (B, N) row weights that add up to one.

        Raises:
            ValueError: `row_weights` returns factors of another shape.
        """
        if self.row_weights is None:
            return weights
        if not self.built:  # as a call would
            known = [x for x in (weights, features) if x is not None]
            self.build(*(tuple(x.shape) for x in known))
        log_beta = ops.stop_gradient(self.log_beta(features))
        if len(log_beta.shape) == 0:  # one for all
            log_beta = ops.broadcast_to(log_beta, (ops.shape(weights)[0], 1))
        factors = self.row_weights(teacher, log_beta)
        if not ops.is_tensor(factors):
            raise ValueError(
                "`row_weights` must return a tensor of (B, K) or (B, 1). Received: "
                f"{type(factors).__name__}"
            )
        factors = ops.cast(factors, "float32")
        rows = weights.shape[1] if at_answer else 1
        known = rows is not None
        if len(factors.shape) != 2 or (known and factors.shape[1] not in (1, rows)):
            raise ValueError(
                "`row_weights` must return one factor for each example, (B, 1), or, of "
                "an energy at the answer's rows, for each of these, (B, K). Received: "
                f"shape={tuple(factors.shape)}, for row weights of shape "
                f"{tuple(weights.shape)}"
            )
        # A negative one is none: it would reward the student for errors.
        factors = ops.where(factors < 0, float("nan"), ops.stop_gradient(factors))
        # Rows without a weight may hold anything.
        return normalised(weights * ops.where(weights != 0, factors, 0.0))

    def build(self, weights_shape, features_shape=None):
        """Makes no variables; a subclass that has some overrides it."""
        self.built = True

    def call(self, weights, features=None):
        log_beta = self.log_beta(features)
        self.add_loss(self.penalty(log_beta, weights))
        return log_beta

    def penalty(self, log_beta, weights):
        """What a call adds to the loss: -(d / 2) times the mean of log beta."""
        return log_beta_penalty(log_beta, weights, self.dim)

    def log_beta(self, features):
        """log beta, float32, broadcastable to (B, K); implemented by subclasses.

        Args:
            features: as for a call.
        """
        raise NotImplementedError

    def update(self, energy, weights):
        """Called once per training step, after the energy of its batch is known.

        Args:
            energy: (B, K), without gradient.
            weights: (B, K), the row weights of the call.
        """

    def get_config(self):
        config = super().get_config()
        del config["dtype"]
        config["dim"] = self.dim
        if self.row_weights is not None:
            config["row_weights"] = keras.saving.serialize_keras_object(
                self.row_weights
            )
        return config


class RangedBeta(Beta):
    """Base class of the betas that change: an initial value and two bounds."""

    def __init__(
        self,
        dim=1.0,
        initial_value=1.0,
        min_value=0.01,
        max_value=100.0,
        name=None,
        **kwargs,
    ):
        super().__init__(dim=dim, name=name, **kwargs)
        self.initial_value = positive("initial_value", initial_value)
        self.min_value = positive("min_value", min_value)
        self.max_value = positive("max_value", max_value)
        if not min_value < initial_value < max_value:
            raise ValueError(
                "`initial_value` must lie between `min_value` and `max_value`. "
                f"Received: initial_value={initial_value}, min_value={min_value}, "
                f"max_value={max_value}"
            )

    @property
    def bounds(self):
        return self.min_value, self.max_value

    @property
    def initial_energy(self):
        """The energy at which `initial_value` is the best beta."""
        return 0.5 * self.dim / self.initial_value

    def get_config(self):
        return {
            **super().get_config(),
            "initial_value": self.initial_value,
            "min_value": self.min_value,
            "max_value": self.max_value,
        }


def _bent(x):
    """x / sqrt(1 + x^2), between -1 and 1.

    For |x| > 1 computed as sign(x) / sqrt(1 + 1 / x^2): x^2 may overflow there, and the
    slope would be the difference of two numbers of size 1 / x, lost in rounding.
    """
    near = ops.abs(x) <= 1.0
    close = ops.where(near, x, 0.0)
    far = ops.where(near, 1.0, x)
    return ops.where(
        near,
        close / ops.sqrt(1.0 + ops.square(close)),
        ops.sign(far) / ops.sqrt(1.0 + ops.square(1.0 / far)),
    )


class LearnedBeta(RangedBeta):
    """Base class of the learned betas: bounds of log beta, and its speed."""

    default_multiplier = 1.0

    def __init__(self, *args, speed=DEFAULT_SPEED, multiplier=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.speed = positive("speed", speed)
        if multiplier is None:
            multiplier = self.default_multiplier
        self.multiplier = positive("multiplier", multiplier)

    @property
    def learning_rate(self):
        return self.speed / self.multiplier

    def unbounded(self, raw):
        """log beta of a `raw` that stays within the bounds by other means."""
        return math.log(self.initial_value) + sped_up(raw, self.multiplier)

    def _room(self):
        """The distances of log beta's bounds below and above its initial value."""
        start = math.log(self.initial_value)
        return start - math.log(self.min_value), math.log(self.max_value) - start

    def bounded(self, raw):
        """log beta of an unbounded `raw`: smooth, with slope 1 at `raw` = 0.

        log beta = log(initial_value) + x / sqrt(1 + (x / h)^2), x = multiplier * raw,
        h the distance from the initial value to the bound on that side. Its slope falls
        as a power of x and not exponentially, so that a gradient is left far beyond the
        bounds.
        """
        x = sped_up(raw, self.multiplier)
        below, above = self._room()
        room = ops.where(x > 0, above, below)
        return math.log(self.initial_value) + room * _bent(x / room)

    def get_config(self):
        return {
            **super().get_config(),
            "speed": self.speed,
            "multiplier": self.multiplier,
        }
