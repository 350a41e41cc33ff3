"""`Energy`, the base class of the energies: shapes, precision, masks, configuration.

An *energy* l(student; teacher) measures how far a student's output is from its
teacher's at one position. Beta-KD reads it as the negative logarithm of an unnormalised
Gibbs prior, p(student | teacher, beta) = exp(-beta l) / Z. In this library an energy is
a `keras.losses.Loss` whose `call(y_true=teacher, y_pred=student)` returns one value per
position: only the class axis is reduced, so that a weight can be learned per example or
per token. It is 0 exactly where the two models agree, as the -(d / 2) log(beta) term of
the objective requires.

To write a new energy, subclass `Energy`, which hands logits to `pointwise`, or
`keras_betakd.energies.ProbabilityEnergy`, which hands it log-probabilities, and
implement `pointwise`. The base class does everything else.
"""

import inspect
import math
import numbers
import re
from typing import Any

import keras
from keras import ops

from keras_betakd.backends import value_and_gradient
from keras_betakd.energies.masking import (
    mask_weights,
    position_weights,
    select_supervised,
)

_INEXACT = ("float16", "bfloat16")


class Energy(keras.losses.Loss):
    """Base class of the energies: a distance between teacher and student logits.

    Subclasses implement `pointwise(teacher, student)`; this class does the checks, the
    precision, the masks and the configuration.

    Shapes: `y_true` (teacher) and `y_pred` (student) are `(..., V)` for V classes,
    `call` returns `(...)`, and calling the energy returns a scalar unless `reduction`
    is `None`.

    Masking: positions where `sample_weight`, or a mask that Keras attached to
    `y_pred`, is zero are replaced before any arithmetic, so NaN or infinite logits in
    padding change neither value nor gradient. `sample_weight` may be `(B,)`,
    `(B, 1)`, `(B, T)` or `(B, T, 1)`. The default reduction divides by the weight
    that was counted and returns 0 if there was none.

    Precision: half-precision inputs are cast to float32 once, before any arithmetic,
    under every dtype policy and `floatx`.

    Args:
        name: Name of the loss. Defaults to the class name in snake case without
            "energy", for example `"forward_kl"`.
        reduction: As in `keras.losses.Loss`. Defaults to
            `"mean_with_sample_weight"`: the sum of weight times energy over the
            positions, divided by the sum of the weights.
        dtype: `"float32"` or `"float64"`. Defaults to `None`: float64 if that is
            `keras.config.floatx()`, float32 otherwise.

    Raises:
        ValueError: at construction for an invalid `reduction` or `dtype`; when
            called, if teacher and student differ in shape (vocabularies of different
            size included), or if `sample_weight` does not broadcast to the positions.

    Example:

    >>> class LargestGap(Energy):
    ...     def pointwise(self, teacher, student):
    ...         return ops.max(ops.abs(teacher - student), axis=-1)
    >>> teacher = ops.array([[1.0, 2.0], [0.0, 0.0]])
    >>> student = ops.array([[1.0, 5.0], [9.0, 9.0]])
    >>> float(LargestGap()(teacher, student, sample_weight=[1.0, 0.0]))
    3.0
    """

    # Whether `y_true` is a dict of the teacher's "logits" and of "labels", or a tensor
    # of both, and `pointwise` takes the labels as a third argument.
    needs_labels = False

    # Which output a distiller compares in place of the logits at the answer, for
    # example "image_features"; `None` for those logits.
    features: str | None = None

    # Whether the student's features pass through a learned linear projection where
    # their width differs from the teacher's.
    projects = False

    # How many image tokens of each record a distiller compares, those to which the
    # teacher's text pays most attention; `None` for all.
    top_tokens = None

    # How an example's weight is shared among its image tokens, where an energy compares
    # the logits at each: `"uniform"`, or see `ImageTokenEnergy`.
    token_weights: Any = "uniform"

    # Whether teacher and student may have different vocabularies.
    crosses_vocabularies = False

    # The `EnergySchedule` of an energy that changes during training, or `None`.
    schedule: Any = None

    # A scalar variable that the energy learns, or `None`. An energy that has one
    # implements `value_and_gradients`.
    parameter: Any = None

    # Whether the fused head can compute the energy. It cannot where the energy learns
    # other variables than `parameter` or compares different vocabularies.
    fuses = True

    def __init__(
        self,
        name: str | None = None,
        reduction: str = "mean_with_sample_weight",
        dtype: str | None = None,
    ):
        if dtype is None:
            dtype = _float32_or_wider(keras.config.floatx())
        super().__init__(
            name=name or _snake_case_name(type(self)), reduction=reduction, dtype=dtype
        )
        if self.dtype not in ("float32", "float64"):
            raise ValueError(
                "`dtype` must be 'float32' or 'float64': the sums of an energy run "
                "over a whole vocabulary, and logits in half precision are raised to "
                f"float32 without being asked. Received: dtype={dtype}"
            )

    def __call__(self, y_true, y_pred, sample_weight=None):
        self._expect_no_state_in(inspect.currentframe().f_back)
        y_pred = self._as_tensor(y_pred)
        y_true, labels = self._logits_and_labels(y_true, y_pred)
        y_true = ops.convert_to_tensor(y_true, dtype=self.dtype)
        self.check_shapes(y_true, y_pred)
        weights = mask_weights(y_pred, self.dtype, self.reduction)
        if sample_weight is not None:
            weights = weights * position_weights(sample_weight, weights)
        y_pred = ops.cast(y_pred, self.dtype)
        teacher = select_supervised(y_true, weights)
        return super().__call__(
            self.target(teacher, labels),
            select_supervised(y_pred, weights),
            sample_weight=weights,
        )

    def call(self, y_true, y_pred):
        """Returns the energy of each position: `(..., V)` twice to `(...)`."""
        student = self._as_tensor(y_pred)
        teacher, labels = self._logits_and_labels(y_true, student)
        teacher = self._as_tensor(teacher)
        self.check_shapes(teacher, student)
        dtype = _float32_or_wider(teacher.dtype, student.dtype)
        values = self.pointwise(
            self.represent(ops.cast(teacher, dtype)),
            self.represent(ops.cast(student, dtype)),
            *([labels] if self.needs_labels else []),
        )
        return self.expect_positions(values, student)

    def expect_positions(self, values, student):
        """Returns the values; raises unless there is one for each position."""
        shape = tuple(values.shape) if ops.is_tensor(values) else None
        expected = tuple(student.shape[:-1])
        if shape is None or not shapes_agree(shape, expected):
            received = type(values).__name__ if shape is None else f"shape {shape}"
            raise ValueError(
                f"`{type(self).__name__}.pointwise` must return one value for each "
                f"position, the shape {expected}: only the last axis, the classes, is "
                f"reduced, by `axis=-1`. Received: {received}"
            )
        return values

    def check_shapes(self, teacher, student):
        """Raises if the two tensors cannot be compared."""
        check_same_shape(teacher, student)

    @property
    def default_name(self):
        """The name that an energy gets where none is given."""
        return _snake_case_name(type(self))

    def target(self, logits, labels):
        """`y_true` for `call`: the logits, in a dict with the labels if needed."""
        return {"logits": logits, "labels": labels} if self.needs_labels else logits

    def _as_tensor(self, x):
        return x if ops.is_tensor(x) else ops.convert_to_tensor(x, dtype=self.dtype)

    def _logits_and_labels(self, y_true, y_pred):
        if not self.needs_labels:
            return y_true, None
        if isinstance(y_true, dict) and not {"logits", "labels"} - set(y_true):
            return y_true["logits"], y_true["labels"]
        received = f"y_true of type {type(y_true).__name__}"
        if not isinstance(y_true, dict):
            y_true = ops.convert_to_tensor(y_true)
            dtype = keras.backend.standardize_dtype(y_true.dtype)
            if dtype not in _INEXACT and y_true.shape[-1] == y_pred.shape[-1] + 1:
                labels = ops.cast(ops.round(y_true[..., -1]), "int32")
                return y_true[..., :-1], labels
            received = f"y_true of shape {tuple(y_true.shape)} in {dtype}"
        raise ValueError(
            f"`{type(self).__name__}` compares the models around the label, so "
            '`y_true` must be a dict of "logits" (..., V) and "labels" (...), the '
            "class ids. For `model.compile`, where Keras takes no dict, append the ids "
            "to the logits: `np.concatenate([logits, labels[..., None]], axis=-1)`, "
            "(..., V + 1) in float32 (half precision has no exact ids). Received: "
            f"{received}, y_pred of shape {tuple(y_pred.shape)}"
        )

    def _expect_no_state_in(self, frame):
        """Raises where `keras.Model.compile` calls an energy that learns or changes.

        A loss is no layer: Keras would neither train nor update what it holds. There,
        the caller is a method of the `Loss` that Keras makes of those it is given.
        """
        caller = frame.f_locals.get("self")
        ours = not isinstance(caller, keras.losses.Loss) or isinstance(caller, Energy)
        state = self.schedule, self.parameter, getattr(self, "projection", None)
        if ours or all(part is None for part in state):
            return
        raise ValueError(
            f"`{type(self).__name__}` has variables that are trained or updated, "
            "which `keras.Model.compile(loss=...)` does not do for a loss. Use it in a "
            "`BetaKDDistiller`, which takes plain models too (`beta=FixedBeta(1.0)` "
            "for a fixed weight). Or, for a schedule, call it in a training loop of "
            "your own, with `energy.schedule` among the model's layers and "
            "`energy.schedule.update(value)` after each step; for features of other "
            "widths, project them by a layer of the model. Received: "
            f"{self.name!r} as a loss of `keras.Model.compile`"
        )

    def represent(self, logits):
        """The argument of `pointwise` for one model: here the logits themselves."""
        return logits

    def pointwise(self, teacher, student):
        """Returns the energy of each position: `(..., V)` twice to `(...)`.

        Both arguments are results of `represent`, agree in shape and are float32 or
        float64.
        """
        raise NotImplementedError

    def value_and_gradient(self, teacher, student):
        """The energy of each row and its gradient with respect to the student's logits.

        The fused head calls it (`keras_betakd.head_loss.fused`).

        Args:
            teacher, student: `LogitRows` of the same shape (N, V), the student's with
                the labels.

        Returns:
            `(value, parts)`, both without gradient. `value` is (N,). `parts` are pairs
            (factor, array) of a number or (N, 1), and (N, V); their products add up to
            the gradient. The fused head adds up the factors of the student's
            probabilities, which most gradients contain, before it multiplies by them.
        """
        target = self.target(teacher.logits, student.labels)
        value, gradient = value_and_gradient(
            lambda logits: self.call(target, logits), student.logits
        )
        return value, [(1.0, gradient)]

    def value_and_gradients(self, teacher, student):
        """As `value_and_gradient`, for an energy with a learned `parameter`.

        Returns:
            `(value, parts, derivative)`, with the derivative of each row's value with
            respect to `parameter`, (N,), as the third.
        """
        raise NotImplementedError

    def get_config(self):
        return {**super().get_config(), "dtype": self.dtype}


def checked_number(argument, value, low=0.0, high=math.inf, hint=""):
    """Returns `value` as a float; raises unless it lies in the open (low, high)."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (is_number and low < value < high):
        raise ValueError(
            f"`{argument}` must be a number above {low} and below {high}.{hint} "
            f"Received: {argument}={value}"
        )
    return float(value)


def _float32_or_wider(*dtypes):
    # `keras.backend.result_type` turns float64 into float32 on torch and JAX.
    names = [keras.backend.standardize_dtype(dtype) for dtype in dtypes]
    return "float64" if "float64" in names else "float32"


def shapes_agree(a, b):
    """Whether two static shapes can be the same; an unknown size (`None`) fits any."""
    return len(a) == len(b) and all(
        m == n or None in (m, n) for m, n in zip(a, b, strict=True)
    )


def check_same_shape(teacher, student):
    """Raises unless both tensors are of the same positions and classes."""
    expected, received = tuple(teacher.shape), tuple(student.shape)
    if not shapes_agree(expected, received):
        raise ValueError(
            "Teacher and student logits must have the same shape (..., V): one row "
            "of class scores per position, for the same positions and the same V "
            "classes. If one vocabulary is padded to a greater width, crop the "
            "logits (not the probabilities) of both to the tokens they share; if "
            "the sequences differ, gather the supervised positions of each first. "
            f"Received: teacher shape={expected}, student shape={received}"
        )


def _snake_case_name(cls):
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__)
    return words.removesuffix("_Energy").lower()
