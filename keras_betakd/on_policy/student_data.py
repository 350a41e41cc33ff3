"""`StudentData`: training data of which the student makes a share, epoch by epoch."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from keras_betakd.on_policy.arguments import (
    expect_counts,
    expect_sampling,
    expect_seed,
)
from keras_betakd.on_policy.batches import read_batch, size_of, with_columns
from keras_betakd.on_policy.drawing import drawn_rows, expect_share
from keras_betakd.on_policy.refusals import expect_on_policy, expect_readable_anew
from keras_betakd.preprocessing.adapters import as_dataset, take_records


class StudentData(keras.utils.PyDataset):
    """Training data of which the student makes a share; base class.

    `fit` binds it to its distiller. At the beginning of each epoch it draws records,
    and has the student make something of them, once for the weights as they are then.
    What is made depends on the weights, the seed, the number of the epoch, the order of
    the data and `batch_size` alone.

    A subclass sets `unit`, what one of them is called, and `directions`, which values
    of its report are better (`"max"`, `"min"` or `None`), by name. It defines
    `_prepare`, `_make`, `_changed`, `report` and `warning`.

    Args:
        data: raw records, or a data set of batches of them.
        on_policy: the share of all records that is drawn.
        temperature, top_k, top_p: how tokens are drawn.
        seed: int from which records and tokens are drawn.
        batch_size: the number of records that the student computes on together; as many
            as a batch has if `None`.

    Attributes:
        last: list of what the student made in the last epoch.
    """

    # Batches that were looked at before an epoch are not those of the epoch.
    changes_at_epochs = True
    unit = ""
    directions: Mapping[str, str | None] = {}

    def __init__(
        self,
        data: Any,
        on_policy: float | Callable[[int], float],
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        seed: int,
        batch_size: int | None,
    ):
        expect_share(on_policy)
        expect_seed(seed)
        expect_counts(batch_size=batch_size)
        expect_sampling(temperature, top_k, top_p)
        # One worker: the queue of several would be filled before the epoch's answers.
        super().__init__(workers=1, use_multiprocessing=False)
        self.data = data
        self.on_policy = on_policy
        self.sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        self.seed = seed
        self.batch_size = batch_size
        self.last: list[Any] = []
        self._dataset = self._bar = None
        self._epoch = 0
        self._is_bound = False
        # Of the records that the student has made something of, by batch and row.
        self._own: dict[tuple[int, int], Any] = {}
        self._due = False
        self._made_at = self._made_of = None

    def bind(self, distiller, batch_size=None, shuffle=True, steps=None, verbose=0):
        """Has the student of a distiller make its share; `fit` calls it.

        Args:
            distiller: the `BetaKDDistiller`.
            batch_size, shuffle, steps, verbose: as for `fit`.
        """
        expect_on_policy(distiller, type(self).__name__, steps)
        self._prepare(distiller)
        # Records that were shuffled before go on with their next epoch.
        if self._dataset is None or self._made_of != (batch_size, shuffle):
            dataset = as_dataset(self.data, batch_size, shuffle)
            expect_readable_anew(dataset, self.data, type(self).__name__)
            self._dataset, self._epoch = dataset, 0
            self._made_of = batch_size, shuffle
        self._epoch = getattr(self._dataset, "epoch", self._epoch)
        self._iterations = distiller.optimizer.iterations
        self._shows_progress = verbose in ("auto", 1)
        self._made_at, self._own = None, {}
        self._is_bound = True

    def release(self):
        """Ends what `bind` began; `fit` calls it. `last` stays."""
        self._is_bound = False

    # What a subclass defines

    def _prepare(self, distiller):
        """Makes what the student computes with, unless it is there."""
        raise NotImplementedError

    def _make(self, drawn):
        """Fills `_own` and, by `_add`, `last`.

        Args:
            drawn: for each batch the rows that were drawn.
        """
        raise NotImplementedError

    def _changed(self, batch, index):
        """The columns of a batch that differ where the student made something."""
        raise NotImplementedError

    def report(self):
        """What `History` holds of the last epoch: dict of numbers by name."""
        raise NotImplementedError

    def warning(self, epoch, count):
        """What is wrong with the last epoch, a sentence; `None` if nothing is.

        Args:
            epoch: its number.
            count: the number of epochs of this `fit`, this one included.
        """
        raise NotImplementedError

    # The epochs

    @property
    def epoch(self):
        """The number of the epoch, as the data counts it."""
        return self._epoch

    def start_epoch(self, epoch):
        """Goes to an epoch, by its number; the student makes its share in its begin."""
        self._epoch = epoch
        if hasattr(self._bound, "start_epoch"):
            self._bound.start_epoch(epoch)
        self._due = True

    def on_epoch_begin(self):
        self._bound.on_epoch_begin()
        if self._due:
            self._make_anew()

    def on_epoch_end(self):
        self._bound.on_epoch_end()
        self._epoch = getattr(self._bound, "epoch", self._epoch + 1)

    def _make_anew(self):
        """Has the student make its share, once for the weights as they are."""
        self._due = False
        state = self._epoch, int(keras.ops.convert_to_numpy(self._iterations))
        if state == self._made_at:
            return
        self._own, self.last = {}, []
        drawn = self._drawn()
        self._bar = keras.utils.Progbar(sum(map(len, drawn)), unit_name=self.unit)
        self._make(drawn)
        self._show(finalize=True)
        self._made_at = state

    def _add(self, made):
        """Adds one of what the student makes to those that are shown."""
        self.last.append(made)
        self._show(finalize=False)

    def _show(self, finalize):
        count = len(self.last)
        if self._shows_progress and count:
            self._bar.target = count if finalize else max(self._bar.target, count)
            self._bar.update(count, finalize=finalize)

    def _drawn(self):
        """For each batch the rows that are drawn."""
        share = self.on_policy
        if callable(share):
            share = expect_share(share(self._epoch), self._epoch)
        sizes = [size_of(self._bound, index) for index in range(self.num_batches)]
        return drawn_rows(share, sizes, self.seed, self._epoch)

    def _rows_of(self, index, rows):
        """The raw records of some rows of a batch."""
        if hasattr(self._bound, "part"):
            return self._bound.part(index, rows)
        return take_records(read_batch(self._bound, index), rows)

    @property
    def _group_size(self):
        return self.batch_size or size_of(self._bound, 0)

    # The batches

    @property
    def _bound(self):
        if not self._is_bound:
            raise ValueError(
                f"`{type(self).__name__}` must be the training data that `fit` is "
                "given: only there is a student that answers. Give other methods, "
                "`validation_data` and a `ProcessShare` the data that it was made of."
            )
        return self._dataset

    @property
    def num_batches(self):
        return self._bound.num_batches

    def __getitem__(self, index):
        batch = read_batch(self._bound, index)
        return with_columns(batch, self._changed(batch, index))

    def places_of(self, index):
        """The places of a batch's records in the data."""
        find = getattr(self._bound, "places_of", None)
        if find is not None:
            return find(index)
        return [f"{row} of batch {index}" for row in range(size_of(self._bound, index))]


def given_weights(batch, key):
    """A column of weights as an array that may be changed, of ones if there is none."""
    given = batch.get(key)
    if given is None:
        return np.ones(len(batch["prompts"]), "float32")
    return np.array(given)


@contextlib.contextmanager
def released(data):
    """Within, a `StudentData` is bound, or `None`; it is released in the end."""
    try:
        yield
    finally:
        if data is not None:
            data.release()
