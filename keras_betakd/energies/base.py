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
from keras_betakd.energies.rows import ProbabilityRows

_MEANS_OVER_ALL_POSITIONS = ("mean", "sum_over_batch_size")


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


def position_weights(sample_weight, values):
    """Broadcasts `sample_weight` to the shape of the per-position `values`.

    Missing trailing axes are added, so `(B,)` and `(B, 1)` weigh whole examples and
    `(B, T)` single positions; `(B, T, 1)` is taken as `(B, T)`. Keras' own reduction
    would divide the sum over T positions by the B weights it was given.
    """
    weights = ops.convert_to_tensor(sample_weight, dtype=values.dtype)
    received, rank = tuple(weights.shape), len(values.shape)
    if len(received) == rank + 1 and received[-1] == 1:
        weights = ops.squeeze(weights, axis=-1)
    while len(weights.shape) < rank:
        weights = ops.expand_dims(weights, axis=-1)
    fits = len(weights.shape) == rank and all(
        w in (1, v) or None in (w, v)
        for w, v in zip(weights.shape, values.shape, strict=True)
    )
    if not fits:
        raise ValueError(
            "`sample_weight` must give one weight per example or per position, "
            f"that is, broadcast to {tuple(values.shape)} after trailing axes of 1 "
            f"are added. Received: sample_weight.shape={received}"
        )
    return weights * ops.ones_like(values)


def select_supervised(logits, weights):
    """Replaces the logits of positions that carry no weight by a harmless constant.

    A product with a zero weight is no mask: 0 * NaN is NaN, forward and backward.
    Selecting before any arithmetic leaves padding without influence on the value and
    with a gradient of exactly 0, whatever it contains.

    Args:
        logits: tensor of shape `(..., V)`, for example `(B, K, V)`.
        weights: tensor of shape `(...)`, for example `(B, K)`; the positions where
            it is zero (or False) are replaced.

    Returns:
        A tensor like `logits`, with a row of ones (a uniform distribution, read as
        logits or as probabilities) in every position without weight.
    """
    supervised = ops.expand_dims(ops.cast(weights, "bool"), axis=-1)
    return ops.where(supervised, logits, ops.ones_like(logits))


def log_probabilities(x, temperature=1.0, from_logits=True):
    """log softmax(x / temperature) over the last axis, with -inf for excluded classes.

    With `from_logits=False`, `x` holds probabilities; they are tempered as
    p^(1/temperature) and renormalised, and a negative entry gives NaN: logits passed
    by mistake must not turn into a number that looks like a loss.
    """
    if not from_logits:
        positive = x > 0
        # The inner selection keeps log(0), and its infinite slope, out of the gradient.
        logs = ops.log(ops.where(positive, x, ops.ones_like(x)))
        excluded = ops.where(x == 0, -math.inf, math.nan)
        x = ops.where(positive, logs, ops.cast(excluded, x.dtype))
    if temperature != 1.0:
        x = x / temperature
    return ops.log_softmax(x, axis=-1)


class _MaskProbe(keras.losses.Loss):
    """Reads the Keras mask of a tensor as 0/1 weights, one per position.

    Where a mask is stored depends on the backend (JAX tracers take no attributes)
    and the function that finds it is private; a `Loss` is handed it by Keras itself.
    """

    def call(self, y_true, y_pred):
        return ops.ones_like(y_pred[..., 0])


def attached_mask(tensor, dtype="float32"):
    """The mask that Keras attached to `(..., V)`, as 0/1 of shape `(...)`; or ones."""
    probe_dtype = keras.backend.standardize_dtype(tensor.dtype)
    # The mask is 0 or 1, so the tensor need not be cast to read it.
    mask = _MaskProbe("mask_probe", reduction=None, dtype=probe_dtype)(tensor, tensor)
    return ops.cast(mask, dtype)


def _mask_weights(y_pred, dtype, reduction):
    mask = attached_mask(y_pred, dtype)
    if reduction in _MEANS_OVER_ALL_POSITIONS:
        # As in Keras: these divide by every position, so the valid ones are scaled up.
        mask = mask * ops.divide_no_nan(ops.sum(ops.ones_like(mask)), ops.sum(mask))
    return mask


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

    def __call__(self, y_true, y_pred, sample_weight=None):
        if not ops.is_tensor(y_pred):
            y_pred = ops.convert_to_tensor(y_pred, dtype=self.dtype)
        y_true, labels = self._logits_and_labels(y_true)
        y_true = ops.convert_to_tensor(y_true, dtype=self.dtype)
        self.check_shapes(y_true, y_pred)
        weights = _mask_weights(y_pred, self.dtype, self.reduction)
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

        What the fused head asks of an energy (`keras_betakd.fused`).

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


class ProbabilityEnergy(Energy):
    """Base class of the energies that compare probabilities.

    `pointwise(log_p, log_q)` receives the teacher's and the student's
    log-probabilities at `temperature`. A class excluded by both models (-inf in both)
    counts for nothing; one excluded by a single model gives the true value, which is
    infinite for a KL divergence.

    The temperature divides both logits. Gradients fall like 1/T^2 as it grows;
    `scale_by_t2=True` multiplies by T^2 to undo that (Hinton et al. 2015, section 2).
    Under a learned weight the factor has no effect at the optimum, since
    beta* = d / (2 l) moves by 1/T^2 in return; it moves the start and the bounds.

    Args:
        temperature: Positive number T. Defaults to 1.
        scale_by_t2: Whether to multiply the energy by T^2. Defaults to `False`.
        from_logits: Whether the inputs are logits. If `False` they are probabilities,
            which are tempered and renormalised. Defaults to `True`.
        name, reduction, dtype: See `Energy`.

    Raises:
        ValueError: if `temperature` is not positive and finite; see also `Energy`.

    Example:

    >>> class SquaredHellinger(ProbabilityEnergy):
    ...     def pointwise(self, log_p, log_q):
    ...         gap = ops.exp(log_p / 2) - ops.exp(log_q / 2)
    ...         return 0.5 * ops.sum(gap * gap, axis=-1)
    >>> energy = SquaredHellinger(from_logits=False)
    >>> float(energy(ops.array([[1.0, 0.0]]), ops.array([[0.0, 1.0]])))
    1.0
    """

    def __init__(
        self,
        temperature=1.0,
        scale_by_t2=False,
        from_logits=True,
        name=None,
        reduction="mean_with_sample_weight",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.temperature = checked_number("temperature", temperature)
        self.scale_by_t2 = scale_by_t2
        self.from_logits = from_logits

    def represent(self, logits):
        return log_probabilities(logits, self.temperature, self.from_logits)

    def call(self, y_true, y_pred):
        """Returns the energy of each position: `(..., V)` twice to `(...)`."""
        values = super().call(y_true, y_pred)
        return values * self.temperature**2 if self.scale_by_t2 else values

    # `closed_form(rows)` returns value and slope, see `energies.closed_forms`.
    closed_form = None

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        # An inherited closed form would belong to another formula than this one.
        redefined = {"pointwise", "represent", "call"} & set(vars(cls))
        if redefined and "closed_form" not in vars(cls):
            cls.closed_form = None

    def value_and_gradient(self, teacher, student):
        if self.closed_form is None or not self.from_logits:
            return super().value_and_gradient(teacher, student)
        rows = ProbabilityRows(teacher, student, self.temperature)
        value, slope = self.closed_form(rows)
        scale = self.temperature**2 if self.scale_by_t2 else 1.0
        slope = [(factor * (scale / self.temperature), x) for factor, x in slope]
        return value if scale == 1.0 else scale * value, slope

    def get_config(self):
        return {
            **super().get_config(),
            "temperature": self.temperature,
            "scale_by_t2": self.scale_by_t2,
            "from_logits": self.from_logits,
        }
