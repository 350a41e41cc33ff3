"""Which batches Keras trains on in an epoch, and in what order, on every backend.

Keras reads the first batches of a data set to build a model, some of them more than
once, and remembers the number of batches of the first epoch. Here batches have numbers
within an epoch, epochs have numbers within a training, and an epoch begins when
training, evaluating or predicting begins, not when somebody looks at its data.
"""

import itertools
import os
import sys
import threading
import warnings

import keras
import numpy as np

from keras_betakd.data.batches import expect_positive
from keras_betakd.preprocessing.adapters import RecordBatches, drawn_seed
from keras_betakd.preprocessing.image_inputs import with_other_sizes
from keras_betakd.preprocessing.iterables import has_batch, is_endless
from keras_betakd.preprocessing.read_ahead import ReadAhead

# Keras looks at so many batches, some several times, before it trains on the first.
_LOOKS = 2

_END = object()


class FormattedDataset(keras.utils.PyDataset):
    """A `PyDataset` that formats each batch when it is read.

    With `steps`, an epoch is that many batches, and the next epoch goes on where it
    ended; the last epoch of a pass over the data is shorter if need be. This is what
    Keras does under `steps_per_epoch`, but here a pass keeps its order until its end,
    and a training that is resumed goes on in its middle.

    Args:
        dataset: a `PyDataset`. If it has an attribute `epoch` and a method
            `start_epoch(number)`, it is set to each pass over it by its number.
        formatter: callable that is applied to each batch and its number.
        shuffle: whether to shuffle the order of the batches in each pass.
        steps: the number of batches of an epoch; `None` for all of a pass.
        workers: the number of threads that format batches ahead of the steps; 0 for
            none. The data itself is read by one thread, in order, and never beyond the
            epoch.
        max_queue_size: the most batches that are formatted ahead.

    Attributes:
        error: the last error of reading a batch; `None` if there was none.

    Raises:
        ValueError: there is no batch, or the data is endless and `steps` is `None`.
    """

    def __init__(
        self,
        dataset,
        formatter,
        shuffle=False,
        steps=None,
        workers=0,
        max_queue_size=1,
    ):
        super().__init__(
            workers=dataset.workers,
            use_multiprocessing=dataset.use_multiprocessing,
            max_queue_size=dataset.max_queue_size,
        )
        self.dataset = dataset
        self.formatter = formatter
        self.seed = drawn_seed() if shuffle else None
        self.steps = steps
        self.epoch = self._passes_before = getattr(dataset, "epoch", 0)
        self._pass, self._start = self.epoch, 0
        self._begun = self._reading = False
        self._order = None
        self._newest = {}  # the newest batches, by pass and number
        self._ahead = 0
        self._threads = workers, max_queue_size
        self._reader = None
        self.error = None
        self._owner = os.getpid(), threading.get_ident()
        self._expect_steps()
        self._expect_batch()

    def _expect_steps(self):
        if self.steps is not None:
            expect_positive("steps", self.steps)
        if self.steps is None and is_endless(self.dataset):
            raise ValueError(
                "The data never ends, so an epoch of it would not end either. Give the "
                "number of batches: `steps_per_epoch` of `fit`, `validation_steps`, "
                "`steps` of `evaluate` and `predict`."
            )
        size = self.dataset.num_batches
        if self.steps is not None and size is not None and self.steps > size:
            warnings.warn(
                f"Epochs of {self.steps} steps were asked for, but the data has "
                f"{size} batches: an epoch ends with them.",
                stacklevel=2,
            )

    def _expect_batch(self):
        if not has_batch(self.dataset, self._start):
            raise ValueError(
                "The data has no batch (left): it is empty, or a generator or iterator "
                "that has come to its end and cannot be started again. Received: "
                f"{self.dataset.num_batches} batches, epoch {self.epoch}"
            )

    # The epochs

    def start_epoch(self, epoch):
        """Begins epoch number `epoch`; what was read before was a look at the data."""
        if self.steps is None:
            self._enter(epoch, ahead=0 if self._begun else self._passes_before - epoch)
        else:
            self._walk_to(epoch)
        self.epoch = epoch
        self._begun = self._reading = True
        self._expect_batch()

    def _enter(self, number, ahead=0):
        """Begins a pass over the data, by its number in this training.

        Args:
            number: the pass.
            ahead: how many passes the data has seen before this training.
        """
        if self._reader is not None:
            self._reader.clear()
        self._ahead = max(self._ahead, ahead)
        self._pass, self._start = number, 0
        if hasattr(self.dataset, "epoch"):
            self.dataset.start_epoch(number + self._ahead)
        self._shuffle()

    def _walk_to(self, epoch):
        if not self._begun or epoch < self.epoch:
            self.epoch = 0
            self._enter(0, ahead=self._passes_before if epoch == 0 else 0)
        while self.epoch < epoch:
            self.epoch += 1
            self._start += self.steps
            if not has_batch(self.dataset, self._start):
                self._enter(self._pass + 1)

    def restart(self):
        """Begins the present pass with its first batch, to evaluate or predict."""
        self._enter(self._pass)
        self._begun = self._reading = True
        self._expect_batch()

    def close(self):
        """Ends the threads that format batches ahead."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def end_training(self):
        """Leaves the data at the next pass, from which another training begins."""
        self.close()
        if hasattr(self.dataset, "epoch"):
            self.dataset.start_epoch(self._pass + self._ahead + 1)

    def _shuffle(self):
        size = self.dataset.num_batches
        if self.seed is not None and size is not None:
            generator = np.random.default_rng((self.seed, self._pass + self._ahead))
            self._order = generator.permutation(size)

    def on_epoch_begin(self):
        self._reading = True
        self.dataset.on_epoch_begin()
        if getattr(self.dataset, "changes_at_epochs", False):
            self._newest.clear()

    def on_epoch_end(self):
        self._reading = False
        self.dataset.on_epoch_end()
        # Keras calls this before the first epoch, too: only `start_epoch` goes on.
        here = self._pass + self._ahead
        if getattr(self.dataset, "epoch", here) != here:
            self.dataset.start_epoch(here)

    # The batches

    @property
    def num_batches(self):
        if self._has_fixed_size:
            return self.dataset.num_batches
        size = self.dataset.num_batches
        if not self._reading or size is None and self.steps is None:
            return StepCount(self)
        rest = [size - self._start] if size is not None else []
        return min([*rest, *([] if self.steps is None else [self.steps])])

    @property
    def _has_fixed_size(self):
        moves = hasattr(self.dataset, "epoch") or hasattr(self.dataset, "has_batch")
        fixed = isinstance(self.dataset, RecordBatches) or not moves
        return fixed and self.steps is None

    @property
    def shown_steps(self):
        """The number of steps of an epoch, for progress bars; `None` if unknown."""
        sizes = (self.steps, self.dataset.num_batches)
        return min((size for size in sizes if size is not None), default=None)

    def has_step(self, index):
        """Whether this epoch has a batch of this number."""
        if self.steps is not None and index >= self.steps:
            return False
        return has_batch(self.dataset, self._start + index)

    def __getitem__(self, index):
        # The queue of several workers goes on to fill when Keras has looked at a batch,
        # and is emptied into the next epoch; it leaves out `None`.
        queued = (os.getpid(), threading.get_ident()) != self._owner
        queued = queued and (self.workers > 1 or self.use_multiprocessing)
        if queued and index > 0 and not self._begun:
            return None
        if not self.has_step(index):  # read ahead, never trained on
            return None if queued else next(reversed(self._newest.values()), None)
        if queued:
            return self._format(self._place(index))
        if self._begun or index != 1:
            return self._remembered(index)
        # On TensorFlow Keras takes for fixed what its first looks at the data, at the
        # batches 0 and 1, have in common.
        first, batch = self._newest.get(self._place(0)), self._remembered(1)
        return with_other_sizes(batch, batch if first is None else first)

    def _remembered(self, index):
        """The batch of a step, formatted once where it is asked for again."""
        place = self._place(index)
        if place not in self._newest:
            self._newest[place] = self._format(place, self._following(index))
            if len(self._newest) > _LOOKS:
                del self._newest[next(iter(self._newest))]
        return self._newest[place]

    def _place(self, step):
        """The pass and the number in it of the batch of a step."""
        index = self._start + step
        index = index if self._order is None else int(self._order[index])
        return self._pass + self._ahead, index

    def _following(self, step):
        """The places of the steps after one, to the end of the epoch."""
        size = self.dataset.num_batches
        ends = [] if size is None else [size - self._start]
        ends += [] if self.steps is None else [self.steps]
        steps = range(step + 1, min(ends)) if ends else itertools.count(step + 1)
        return map(self._place, steps)

    def _format(self, place, following=None):
        try:
            if following is None or not (self._threads[0] and self._begun):
                return self._made(self._read(place), place)
            if self._reader is None:
                self._reader = ReadAhead(self._read, self._made, *self._threads)
            return self._reader.take(place, following)
        except Exception as error:
            self.error = error  # see `unwrapped_errors`
            raise

    def _read(self, place):
        # Data of unknown size may end where it is read ahead.
        index = place[1]
        return self.dataset[index] if has_batch(self.dataset, index) else _END

    def _made(self, batch, place):
        if batch is _END:
            return _END
        return self.formatter(batch, self._places_of(place[1]))

    def _places_of(self, index):
        """Where the records of a batch are in the data, as a function of their number.

        Args:
            index: the number of the batch in the data.
        """
        find = getattr(self.dataset, "places_of", None)
        if find is not None:
            rows = find(index)
            return lambda size: [f"number {row} of the data" for row in rows]
        return lambda size: [f"number {i} of batch {index}" for i in range(size)]

    def __iter__(self):
        index = 0
        while self.has_step(index):
            yield self._remembered(index)
            index += 1


def sets_its_order(dataset):
    """Whether a `PyDataset` has an order of its own for each epoch."""
    return hasattr(dataset, "start_epoch") or hasattr(dataset, "has_batch")


class StepCount(int):
    """The number of batches of an epoch, where it differs from epoch to epoch.

    Keras asks once for the number of batches and compares it in each epoch with the
    steps that it has made. This number answers each time whether there are more.
    """

    def __new__(cls, dataset):
        self = super().__new__(cls, sys.maxsize)
        self.dataset = dataset
        return self

    def __le__(self, steps):  # Python tries this first for `steps >= count`
        return not self.dataset.has_step(steps)
