"""Reports NaN and infinity: by a warning, or by a `NonFiniteError`."""

import warnings

import keras
from keras import ops

POLICIES = ("skip", "raise")


class NonFiniteError(RuntimeError):
    """A model's output, a loss or a gradient was NaN or infinite.

    Raised under `compile(on_nonfinite="raise")`, and where every step of an epoch was
    skipped. The student and the betas are as they were before the step.
    """


def check_policy(on_nonfinite):
    if on_nonfinite not in POLICIES:
        raise ValueError(
            f"`on_nonfinite` must be one of {POLICIES}. Received: {on_nonfinite!r}"
        )
    return on_nonfinite


def with_callbacks(callbacks, *ours):
    """The callbacks that a user passed, after the library's own."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = callbacks.callbacks  # that list cannot be extended
    if callbacks is None:
        return list(ours)
    callbacks = [callbacks] if not isinstance(callbacks, (list, tuple)) else callbacks
    # Ours first: no other callback then saves anything after a non-finite step.
    return [*ours, *callbacks]


class NonFiniteReport(keras.callbacks.Callback):
    """Reports the rows and steps left out, after each epoch, evaluation or step.

    Args:
        policy: `"skip"` warns at the end of each epoch, since at each step it would
            have to wait for the result; `"raise"` checks each step.
        at_epochs: whether it runs in `fit`; in `evaluate` if not.
    """

    def __init__(self, policy, at_epochs):
        super().__init__()
        self.policy = policy
        self.at_epochs = at_epochs

    def on_epoch_begin(self, epoch, logs=None):
        self.watch, self.batches = NonFiniteWatch(self.model), 0

    def on_test_begin(self, logs=None):
        if not self.at_epochs:
            self.watch, self.batches = NonFiniteWatch(self.model), 0

    def on_train_batch_end(self, batch, logs=None):
        self.batches = batch + 1
        self._check()

    def on_test_batch_end(self, batch, logs=None):
        if not self.at_epochs:
            self.batches = batch + 1
        self._check()

    def _check(self):
        if self.policy == "raise":
            self.watch.expect_none(self.model)

    def on_epoch_end(self, epoch, logs=None):
        self.watch.report(self.model, f"epoch {epoch + 1}", self.batches)

    def on_test_end(self, logs=None):
        if not self.at_epochs:
            self.watch.report(self.model, "this evaluation", self.batches)


class NonFiniteWatch:
    """Compares a distiller's counts with those at the time this was made."""

    def __init__(self, distiller):
        self._start = _counts(distiller)

    def _since(self, distiller):
        now = _counts(distiller)
        return {name: count - self._start[name] for name, count in now.items()}

    def expect_none(self, distiller):
        """Raises a `NonFiniteError` if anything was left out."""
        found = self._messages(distiller, "this step")
        if found:
            raise NonFiniteError(
                " ".join(found) + " Neither student nor betas were changed by what "
                'was left out; `compile(on_nonfinite="skip")` goes on without it.'
            )

    def report(self, distiller, when, batches):
        """Warns of what was left out; raises if all of `batches` were skipped."""
        for message in self._messages(distiller, when):
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        since = self._since(distiller)
        if 0 < batches <= max(since["skipped"], since["steps"]):
            raise NonFiniteError(
                f"All {batches} batches of {when} were skipped, since losses or "
                "gradients were not finite: nothing was learned. Lower the learning "
                "rate, or look at the samples that are named in the warning."
            )

    def _messages(self, distiller, when):
        since, start = self._since(distiller), self._start["batches"]
        counts = distiller.faults
        found = []
        if since["teacher"]:
            names, last = counts.teacher.named(start)
            found.append(
                f"The teacher gave NaN or infinity at {since['teacher']} answer tokens "
                f"in {when}, the last in batch {last} (counted from 0), of "
                f"{_listed(names)}. They were left out of the energies; their labels "
                "still count. Run the teacher in bfloat16 or float32 instead of "
                "float16."
            )
        if since["student"]:
            names, last = counts.student.named(start)
            found.append(
                f"The losses of {since['student']} samples were not finite in {when}, "
                f"the last in batch {last} (counted from 0): of {_listed(names)}. "
                f"{since['skipped']} batches were skipped. Look at these samples, and "
                "at classes that the student excludes (-inf) but the labels or the "
                "teacher do not."
            )
        unexplained = since["steps"] - since["skipped"]
        if unexplained > 0:
            found.append(
                f"{unexplained} steps of {when} were skipped since a gradient was not "
                "finite, though the losses were. Lower the learning rate, or train in "
                "float32 or bfloat16."
            )
        return found


def _counts(distiller):
    counts = distiller.faults
    # Not a `LossScaleOptimizer`, whose skipped steps are part of its search.
    steps = getattr(distiller.optimizer, "skipped", 0)
    found = {
        "batches": counts.batches,
        "skipped": counts.skipped,
        "teacher": counts.teacher.count,
        "student": counts.student.count,
        "steps": steps,
    }
    return {name: int(ops.convert_to_numpy(c)) for name, c in found.items()}


def _listed(names):
    return "samples " + (", ".join(names) or "of another replica")
