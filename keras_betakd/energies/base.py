"""What every energy shares: shapes, precision, masks and configuration.

An *energy* l(student; teacher) measures how far a student's output is from its
teacher's at one position; Beta-KD reads it as the negative log of a Gibbs prior,
p(student | teacher, beta) = exp(-beta l) / Z. In this library an energy is a
`keras.losses.Loss` whose `call(y_true=teacher, y_pred=student)` returns one value
per position: only the class axis is reduced. That is what lets a weight be learned
per example or per token later on, and it is 0 exactly where the two models agree,
as the -(d/2) log(beta) term of the objective requires.

To write a new energy, subclass `Energy` (it sees logits) or `ProbabilityEnergy` (it
sees log-probabilities) and implement `pointwise`. Everything else is done here.
"""

import math
import numbers
import re

import keras
from keras import ops

from keras_betakd.backends import value_and_gradient
from keras_betakd.energies.masking import (
    mask_weights,
    position_weights,
    select_supervised,
)


def checked_number(argument, value, low=0.0, high=math.inf, hint=""):
    """Returns `value` as a float if it lies strictly between `low` and `high`."""
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


def check_same_shape(teacher, student):
    """Raises if the two tensors do not describe the same positions and classes."""
    expected, received = tuple(teacher.shape), tuple(student.shape)
    same = len(expected) == len(received) and all(
        a == b or None in (a, b) for a, b in zip(expected, received, strict=True)
    )
    if not same:
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


class Energy(keras.losses.Loss):
    """Base class of the energies: a distance between teacher and student logits.

    Subclasses implement `pointwise(teacher, student)`; this class owns the checks,
    the precision, the masks and the configuration.

    Shapes: `y_true` (teacher) and `y_pred` (student) are `(..., V)`, `call` returns
    `(...)`, calling the energy returns a scalar unless `reduction` is `None`.

    Masking: positions where `sample_weight`, or a mask that Keras attached to
    `y_pred`, is zero are replaced before any arithmetic, so NaN or infinite logits in
    padding change neither value nor gradient. `sample_weight` may be `(B,)`,
    `(B, 1)`, `(B, T)` or `(B, T, 1)`. The default reduction divides by the weight
    that was counted and returns 0 if there was none.

    Precision: half-precision inputs are raised to float32 once, before any
    arithmetic, under every dtype policy and `floatx`.

    Args:
        name: Name of the loss. Defaults to the class name in snake case without
            "energy", for example `"forward_kl"`.
        reduction: As in `keras.losses.Loss`. Defaults to
            `"mean_with_sample_weight"`, the mean over the supervised weight.
        dtype: `"float32"` or `"float64"`. Defaults to `None`: float64 if that is
            `keras.config.floatx()`, float32 otherwise.

    Raises:
        ValueError: at construction for an invalid `reduction` or `dtype`; when
            called, if teacher and student differ in shape (vocabularies of different
            width included), or if `sample_weight` fits no position.

    Example:

    >>> class LargestGap(Energy):
    ...     def pointwise(self, teacher, student):
    ...         return ops.max(ops.abs(teacher - student), axis=-1)
    >>> teacher = ops.array([[1.0, 2.0], [0.0, 0.0]])
    >>> student = ops.array([[1.0, 5.0], [9.0, 9.0]])
    >>> float(LargestGap()(teacher, student, sample_weight=[1.0, 0.0]))
    3.0
    """

    def __init__(self, name=None, reduction="mean_with_sample_weight", dtype=None):
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

    # Whether `y_true` is a dict of teacher "logits" and "labels", and `pointwise` takes
    # `labels` as a third argument.
    needs_labels = False

    # What a distiller compares in place of the logits at the answer, or `None`.
    features = None

    # Whether it compares models over different vocabularies.
    crosses_vocabularies = False

    # An `EnergySchedule`, for an energy that changes while training goes on.
    schedule = None

    # A scalar variable that the energy learns; it then has `value_and_gradients`.
    parameter = None

    # Whether the fused head can compute it, which knows no other learned variables.
    fuses = True

    # Whether it projects the student's features to the teacher's width, by
    # `set_widths` and `projection`.
    projects = False

    # How many image tokens it compares, those that the teacher's text attends to most;
    # `None` for all.
    top_tokens = None

    def __call__(self, y_true, y_pred, sample_weight=None):
        if not ops.is_tensor(y_pred):
            y_pred = ops.convert_to_tensor(y_pred, dtype=self.dtype)
        y_true, labels = self._logits_and_labels(y_true)
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
        y_true, labels = self._logits_and_labels(y_true)
        teacher, student = (
            x if ops.is_tensor(x) else ops.convert_to_tensor(x, dtype=self.dtype)
            for x in (y_true, y_pred)
        )
        self.check_shapes(teacher, student)
        dtype = _float32_or_wider(teacher.dtype, student.dtype)
        return self.pointwise(
            self.represent(ops.cast(teacher, dtype)),
            self.represent(ops.cast(student, dtype)),
            *([labels] if self.needs_labels else []),
        )

    def check_shapes(self, teacher, student):
        """Raises if the two tensors cannot be compared."""
        check_same_shape(teacher, student)

    def target(self, logits, labels):
        """`y_true` for `call`: the logits, with the labels where they are needed."""
        return {"logits": logits, "labels": labels} if self.needs_labels else logits

    def _logits_and_labels(self, y_true):
        if not self.needs_labels:
            return y_true, None
        if not isinstance(y_true, dict) or {"logits", "labels"} - set(y_true):
            raise ValueError(
                f"`{type(self).__name__}` compares the models around the label, so "
                '`y_true` must be a dict of "logits" (..., V) and "labels" (...), the '
                f"class ids. Received: y_true of type {type(y_true).__name__}"
            )
        return y_true["logits"], y_true["labels"]

    def represent(self, logits):
        """Turns one model's logits into what `pointwise` compares."""
        return logits

    def pointwise(self, teacher, student):
        """Returns the energy per position, `(..., V)` twice to `(...)`.

        Both arguments went through `represent`, agree in shape and are float32 or
        wider.
        """
        raise NotImplementedError

    def value_and_gradient(self, teacher, student):
        """The energy of each row, and its gradient towards the student's logits.

        What the fused head asks of an energy (`keras_betakd.head_loss.fused`).

        Args:
            teacher, student: `LogitRows` of the same shape (N, V), the student's with
                the labels.

        Returns:
            `(value, parts)`, cut off from differentiation: (N,), and pairs of factor
            and array, a number or (N, 1) and (N, V), whose products add up to the
            gradient. The student's probabilities, part of most, are multiplied only
            once so.
        """
        target = self.target(teacher.logits, student.labels)
        value, gradient = value_and_gradient(
            lambda logits: self.call(target, logits), student.logits
        )
        return value, [(1.0, gradient)]

    def value_and_gradients(self, teacher, student):
        """As `value_and_gradient`, and the slope of each row's value, (N,), towards
        `parameter`."""
        raise NotImplementedError

    def get_config(self):
        return {**super().get_config(), "dtype": self.dtype}
