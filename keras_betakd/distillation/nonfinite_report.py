"""Reports NaN and infinity: by a warning, or by a `NonFiniteError`."""

import dataclasses
import functools
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

    Training and the validation after it are reported apart, each with batches of its
    own.

    Args:
        policy: `"skip"` warns at the end of each epoch, since at each step it would
            have to wait for the result; `"raise"` checks each step.
        at_epochs: whether it runs in `fit`; in `evaluate` if not.
    """

    def __init__(self, policy, at_epochs):
        super().__init__()
        self.policy = policy
        self.at_epochs = at_epochs

    def _begin(self, batch, name):
        self.batch, self.part = batch, batch.called(name)
        self.batches, self.watch = 0, NonFiniteWatch(self.model)

    def _end(self):
        self.watch.report(self.model, self.part, self.batches)

    def _count(self, batch):
        self.batches = batch + 1
        if self.policy == "raise":
            self.watch.expect_none(self.model, self.batch)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = f"epoch {epoch + 1}"
        self.trains = True
        self._begin(STEP, self.epoch)

    def on_train_batch_end(self, batch, logs=None):
        self._count(batch)

    def on_test_begin(self, logs=None):
        if not self.at_epochs:
            self._begin(EVALUATED_BATCH, "this evaluation")
            return
        # Keras validates before it ends the epoch.
        self._end_training()
        self._begin(EVALUATED_BATCH, f"the validation of {self.epoch}")

    def on_test_batch_end(self, batch, logs=None):
        self._count(batch)

    def on_test_end(self, logs=None):
        self._end()

    def on_epoch_end(self, epoch, logs=None):
        self._end_training()

    def _end_training(self):
        if self.trains:
            self.trains = False
            self._end()


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a run that is reported by itself.

    Attributes:
        name: what messages call it, e.g. "epoch 3".
        all_lost: the end of the error where no batch was finite.
        kept: what is said of what was left out, when a batch raises.
        is_batch: whether it is a single batch.
    """

    name: str
    all_lost: str
    kept: str
    is_batch: bool = True

    def called(self, name):
        """A part with several batches."""
        return dataclasses.replace(self, name=name, is_batch=False)


STEP = Part(
    name="this step",
    all_lost="since losses or gradients were not finite: nothing was learned. Lower "
    "the learning rate, or look at what the warning names.",
    kept="Neither student nor betas were changed by what was left out; ",
)
EVALUATED_BATCH = Part(
    name="this batch",
    all_lost="since losses were not finite: no metric means anything. Look at the "
    "warning.",
    kept="It entered no metric; ",
)


class NonFiniteWatch:
    """Compares a distiller's counts with those at the time this was made."""

    def __init__(self, distiller):
        self._start = _counts(distiller)

    def _since(self, distiller):
        now = _counts(distiller)
        return {name: count - self._start[name] for name, count in now.items()}

    def expect_none(self, distiller, part):
        """Raises a `NonFiniteError` if anything was left out.

        Args:
            distiller: the distiller.
            part: the `Part` since this was made.
        """
        found = self._messages(distiller, part)
        if found:
            raise NonFiniteError(
                f"{' '.join(found)} {part.kept}"
                '`compile(on_nonfinite="skip")` goes on without it.'
            )

    def report(self, distiller, part, batches):
        """Warns of what was left out; raises if all of `batches` were skipped."""
        for message in self._messages(distiller, part):
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        since = self._since(distiller)
        if 0 < batches <= max(since["skipped"], since["steps"]):
            raise NonFiniteError(
                f"All {batches} batches of {part.name} were skipped, {part.all_lost}"
            )

    def _messages(self, distiller, part):
        since, counts = self._since(distiller), distiller.faults
        named, when = functools.partial(_named, self._start["batches"]), part.name
        found = []
        if since["teacher"]:
            found.append(
                f"The teacher gave NaN or infinity at {since['teacher']} answer tokens "
                f"in {when}, {named(counts.teacher)}. They were left out of the "
                "energies; their labels still count. Run the teacher in bfloat16 or "
                "float32 instead of float16."
            )
        if since["student"]:
            found.append(
                f"The losses of {since['student']} samples were not finite in {when}, "
                f"{named(counts.student)}. {since['skipped']} batches were skipped. "
                "Look at these samples, and at classes that the student excludes "
                "(-inf) but the labels or the teacher do not."
            )
        for name, count in zip(counts.terms, since["weighting"], strict=True):
            if count:
                found.append(
                    f"Weights of '{name}' were not finite or negative, or its log beta "
                    f"was not finite, in {count} batches of {when}: skipped. Look at "
                    "`row_weights` and `log_beta` of its beta, and `weights` of its "
                    "energy."
                )
        unexplained = since["steps"] - since["skipped"]
        if unexplained > 0:
            skipped = f"{unexplained} steps of {when} were"
            if part.is_batch:
                skipped = f"{when.capitalize()} was"
            found.append(
                f"{skipped} skipped since a gradient was not finite, though the losses "
                "were. Lower the learning rate, or train in float32 or bfloat16."
            )
            if since["unweighted"]:
                found.append(
                    "The student itself gave NaN or infinity at "
                    f"{since['unweighted']} labels of weight 0, "
                    f"{named(counts.unweighted)}: look at these samples first."
                )
        return found


def _counts(distiller):
    counts = distiller.faults
    # Not a `LossScaleOptimizer`, whose skipped steps are part of its search.
    steps = getattr(distiller.optimizer, "skipped", 0)
    found = {"batches": counts.batches, "skipped": counts.skipped, "steps": steps}
    numbers = {name: int(ops.convert_to_numpy(c)) for name, c in found.items()}
    return {
        **numbers,
        "teacher": counts.teacher.count,
        "student": counts.student.count,
        "unweighted": counts.unweighted.count,
        "weighting": ops.convert_to_numpy(counts.weighting),
    }


def _named(start, log):
    """The samples of a `NonFiniteLog`, from batch number `start` on."""
    names, last = log.named(start)
    samples = ", ".join(names) or "of another replica"
    return f"the last in batch {last} (counted from 0), of samples {samples}"
