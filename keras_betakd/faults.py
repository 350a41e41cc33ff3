"""A teacher that overflows: its rows are left out, and the user is told.

A large model in float16 can give NaN or infinity for some inputs. Averaged in, one such
row would spoil the student for good.
"""

import functools
import warnings

import keras
from keras import ops


def finite_rows(teacher):
    """Where the teacher's output can be learned from: bool (B, K).

    Args:
        teacher: dict of `"rows"` (B, K, H), `"logits"` (B, K, V), `"packed"`, what a
            cache has instead of rows, or several. Logits of -inf exclude a class and
            are no fault, unless they exclude every class.
    """
    found = []
    if "rows" in teacher:
        found.append(ops.all(ops.isfinite(teacher["rows"]), axis=-1))
    for logits in (teacher[k] for k in ("logits", "packed") if k in teacher):
        legal = ops.logical_or(ops.isfinite(logits), logits < 0)
        some = ops.any(ops.isfinite(logits), axis=-1)
        found.append(ops.logical_and(ops.all(legal, axis=-1), some))
    return functools.reduce(ops.logical_and, found)


def without_faults(teacher, finite):
    """The teacher's outputs with zeros where they are not finite."""

    def cleared(name, value):
        if name in ("rows", "logits", "packed"):
            return ops.where(finite[..., None], value, 0)
        means = ("hidden_states", "hidden_mean")
        return finite_only(value) if name in means else value

    return {name: cleared(name, value) for name, value in teacher.items()}


def finite_only(value):
    """`value` with zeros where it is not finite."""
    if keras.backend.standardize_dtype(value.dtype) == "bool":
        return value
    return ops.where(ops.isfinite(value), value, 0)


class TeacherFaults(keras.layers.Layer):
    """Counts the supervised rows that were left out.

    Attributes:
        rows: how many, since the distiller was made.
        batches: batches seen.
        last: the last of them that had one, counted from 0; -1 if none had.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.rows = self._counter("rows", "zeros")
        self.batches = self._counter("batches", "zeros")
        self.last = self._counter("last", keras.initializers.Constant(-1))
        self.built = True

    def _counter(self, name, initializer):
        return self.add_weight(
            shape=(), dtype="int32", initializer=initializer, trainable=False, name=name
        )

    def update(self, finite, labels):
        """Takes note of a batch: where it is finite, and the weights of its labels."""
        bad = ops.logical_and(ops.logical_not(finite), labels != 0)
        count = ops.sum(ops.cast(bad, "int32"))
        batch = ops.copy(ops.convert_to_tensor(self.batches))
        self.last.assign(ops.where(count > 0, batch, ops.convert_to_tensor(self.last)))
        self.rows.assign(ops.convert_to_tensor(self.rows) + count)
        self.batches.assign(batch + 1)


def with_report(callbacks, at_epochs):
    """What a user passed as `callbacks`, with a `FaultReport`."""
    report = FaultReport(at_epochs)
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks.append(report)
        return callbacks
    if callbacks is None:
        return [report]
    callbacks = [callbacks] if not isinstance(callbacks, (list, tuple)) else callbacks
    return [*callbacks, report]


class FaultReport(keras.callbacks.Callback):
    """Warns when a teacher's rows were left out: once an epoch, or an evaluation.

    Not at each step, which would then have to wait for its result.
    """

    def __init__(self, at_epochs):
        super().__init__()
        self.at_epochs = at_epochs

    def on_train_begin(self, logs=None):
        self._note()

    def on_test_begin(self, logs=None):
        if not self.at_epochs:
            self._note()

    def on_epoch_end(self, epoch, logs=None):
        self._report(f"epoch {epoch + 1}")

    def on_test_end(self, logs=None):
        if not self.at_epochs:
            self._report("this evaluation")

    def _counts(self):
        faults = self.model.teacher_faults
        return int(faults.rows), int(faults.batches), int(faults.last)

    def _note(self):
        self._rows, self._batches, _ = self._counts()

    def _report(self, when):
        rows, batches, last = self._counts()
        if rows > self._rows:
            warnings.warn(
                f"The teacher gave NaN or infinity at {rows - self._rows} answer "
                f"tokens in {when}, the last in batch {last - self._batches} (counted "
                "from 0). They were left out of the energies; their labels still "
                "count. Run the teacher in bfloat16 or float32 instead of float16.",
                RuntimeWarning,
                stacklevel=2,
            )
        self._rows, self._batches = rows, batches
