"""Finds and counts NaN and infinity in the models' outputs and in the losses.

A large model in float16 can overflow for some inputs. Averaged in, one such row would
make the student and the betas NaN for good, so non-finite rows are left out.
"""

import dataclasses
import functools

import keras
from keras import ops

from keras_betakd.backends import largest_or_nan, rows_at
from keras_betakd.distribution.replicas import over_replicas
from keras_betakd.preprocessing.records import ID_BYTES

# How many samples a message names.
NAMED = 8
# Those of `NonFiniteCounts`.
_LOGS = 3


def finite_rows(teacher):
    """The rows where the teacher's output is finite: bool (B, K).

    Args:
        teacher: the teacher's `ModelOutputs`, of which `rows`, `logits` and `packed`
            count. Logits of -inf exclude a class and count as finite, unless they
            exclude every class.
    """
    found = []
    if teacher.rows is not None:
        found.append(ops.all(ops.isfinite(teacher.rows), axis=-1))
    for logits in (x for x in (teacher.logits, teacher.packed) if x is not None):
        found.append(ops.isfinite(largest_or_nan(logits)))
    return functools.reduce(ops.logical_and, found)


def unweighted_nonfinite(student, weights):
    """Rows of weight 0 where the student is not finite: bool, the shape of `weights`.

    They enter no loss, but their gradients are NaN: 0 * NaN.

    Args:
        student: (B, K, V) logits, or (B, K, H) hidden states. -inf excludes a class.
        weights: (B, K), weights of the labels.
    """
    # False of NaN, too.
    known = largest_or_nan(student) < float("inf")
    return ops.logical_and(ops.logical_not(known), weights == 0)


def zero_nonfinite_rows(teacher, finite):
    """The teacher's `ModelOutputs` with zeros where they are not finite.

    Args:
        teacher: the `ModelOutputs`.
        finite: bool (B, K), from `finite_rows`.
    """
    by_row = {
        name: ops.where(finite[..., None], value, 0)
        for name in ("rows", "logits", "packed")
        if (value := getattr(teacher, name)) is not None
    }
    cleared = {
        name: zero_nonfinite(value)
        for name in ("hidden_states", "hidden_mean")
        if (value := getattr(teacher, name)) is not None
    }
    if teacher.features is not None:
        known = {k: v for k, v in vars(teacher.features).items() if v is not None}
        known = keras.tree.map_structure(zero_nonfinite, known)
        cleared["features"] = dataclasses.replace(teacher.features, **known)
    return dataclasses.replace(teacher, **by_row, **cleared)


def zero_nonfinite(value):
    """`value` with zeros where it is not finite."""
    if keras.backend.standardize_dtype(value.dtype) == "bool":
        return value
    return ops.where(ops.isfinite(value), value, 0)


def nonfinite_rows(values, weights):
    """Supervised rows whose loss is not finite: bool, the shape of `weights`."""
    return ops.logical_and(ops.logical_not(ops.isfinite(values)), weights != 0)


class _Counts(keras.layers.Layer):
    """Base of the counters, whose variables are not saved."""

    def _counter(self, name, shape=(), initializer="zeros"):
        return self.add_weight(
            shape=shape,
            dtype="int32",
            initializer=initializer,
            trainable=False,
            aggregation="only_first_replica",  # all have the same counts
            name=name,
        )

    def save_own_variables(self, store):
        pass

    def load_own_variables(self, store):
        pass


class NonFiniteCounts(_Counts):
    """Counts the rows and batches left out since the distiller was made.

    Attributes:
        batches: variable, batches seen.
        skipped: variable, batches that entered no mean and trained nothing.
        teacher: `NonFiniteLog` of answer tokens where the teacher was not finite.
        student: `NonFiniteLog` of samples whose losses were not finite.
        unweighted: `NonFiniteLog` of labels of weight 0 where the student was not
            finite.
        count: variable, (3,): how many values each of these logs has counted.
        last: variable, (3,): number of the last batch that had one; -1 if none had.
        samples: variable, (3, 8, 2 + 64): the samples that had one, the newest batch
            first: batch, place in it, and the id as bytes; -1 where there are fewer.
            Under data parallelism each process knows its own samples (of several
            replicas in it, those of the first).
        terms: the names of the terms.
        weighting: variable, (terms,): batches in which a weight of a row of a term, or
            its log beta, was not finite, or a weight negative.

    Args:
        terms: the names of the terms of the loss.
    """

    def __init__(self, terms=(), **kwargs):
        super().__init__(**kwargs)
        self.terms = list(terms)
        self.weighting = self._counter("weighting", (len(self.terms),))
        self.batches = self._counter("batches")
        self.skipped = self._counter("skipped")
        # One array for all logs: where each operation runs on its own, as on PyTorch,
        # an update of three of them costs three times as much.
        nowhere = keras.initializers.Constant(-1)
        self.count = self._counter("count", (_LOGS,))
        self.last = self._counter("last", (_LOGS,), nowhere)
        self.samples = self._counter("samples", (_LOGS, NAMED, 2 + ID_BYTES), nowhere)
        self.built = True

    @property
    def teacher(self):
        return NonFiniteLog(self, 0)

    @property
    def student(self):
        return NonFiniteLog(self, 1)

    @property
    def unweighted(self):
        return NonFiniteLog(self, 2)

    def update_weighting(self, weights, log_beta):
        """Adds a batch.

        Args:
            weights, log_beta: dicts by the names of the terms.
        """
        sums = []
        for name in self.terms:
            w = weights[name]
            # One sum tells of both; rows without a weight may have any log beta.
            both = ops.where(w != 0, w + log_beta.get(name, 0.0), 0.0)
            sums.append(ops.sum(both))
        bad = ops.cast(ops.logical_not(ops.isfinite(ops.stack(sums))), "int32")
        found = ops.cast(over_replicas(bad) > 0, "int32")
        self.weighting.assign(ops.convert_to_tensor(self.weighting) + found)

    def update(self, total, finite, nonfinite, unweighted, weights, ids=None):
        """Adds a batch.

        Args:
            total: the loss of the global batch.
            finite: (B, K), where the teacher is finite.
            nonfinite: list of (B, N), rows whose losses are not finite.
            unweighted: (B, K), from `unweighted_nonfinite`.
            weights: (B, K), weights of the labels.
            ids: (B, 64) from `encoded_ids`; `None` if the samples have none.

        Returns:
            Whether the batch is finite: whether it is trained on and enters the means.
        """
        bad = ops.logical_and(ops.logical_not(finite), weights != 0)
        lost = [ops.any(rows, axis=1) for rows in nonfinite]
        lost = ops.cast(functools.reduce(ops.logical_or, lost), "int32")
        # (3, B), in the order of the logs.
        found = ops.stack([_by_sample(bad), lost, _by_sample(unweighted)])
        counts = over_replicas(ops.sum(found, axis=1))
        batch = ops.copy(ops.convert_to_tensor(self.batches))
        last = ops.convert_to_tensor(self.last)
        self.last.assign(ops.where(counts > 0, batch, last))
        self.count.assign(ops.convert_to_tensor(self.count) + counts)
        self.samples.assign(self._newest_samples(found, batch, ids))
        counted = ops.logical_and(ops.isfinite(total), counts[1] == 0)
        skipped = ops.cast(ops.logical_not(counted), "int32")
        self.skipped.assign(ops.convert_to_tensor(self.skipped) + skipped)
        self.batches.assign(batch + 1)
        return counted

    def _newest_samples(self, found, batch, ids):
        size = ops.shape(found)[1]
        if ids is None:
            ids = ops.zeros((size, ID_BYTES), dtype="int32")
        rows = ops.arange(size, dtype="int32")
        places = ops.stack([ops.broadcast_to(batch, (size,)), rows], axis=1)
        new = ops.concatenate([places, ops.cast(ids, "int32")], axis=1)
        new = ops.where(found[..., None] > 0, new, -1)
        samples = ops.concatenate([new, ops.convert_to_tensor(self.samples)], axis=1)
        # The samples without any are moved to the end; the rest keep their order.
        behind = ops.cast(samples[..., 0] < 0, "int32")
        size = size + NAMED
        order = ops.argsort(behind * size + ops.arange(size, dtype="int32"), axis=1)
        return rows_at(samples, order[:, :NAMED])


def _by_sample(found):
    """How many of (B, K) are true in each sample, (B,) int32."""
    return ops.sum(ops.cast(found, "int32"), axis=1)


class NonFiniteLog:
    """One of the logs of `NonFiniteCounts`.

    Args:
        counts: the `NonFiniteCounts`.
        number: which of its logs.
    """

    def __init__(self, counts, number):
        self._counts = counts
        self._number = number

    @property
    def count(self):
        """How many non-finite values it has counted, since the distiller was made."""
        return int(ops.convert_to_numpy(self._counts.count)[self._number])

    def named(self, since):
        """Names the last samples that had a non-finite value, and the last batch.

        Args:
            since: number of the batch to look from.

        Returns:
            `(names, batch)`: a list of text, and the batch counted from `since`.
        """
        names = []
        for sample in ops.convert_to_numpy(self._counts.samples)[self._number]:
            batch, row = (int(place) for place in sample[:2])
            if batch < since:
                continue
            text = sample[2:].astype("uint8").tobytes().rstrip(b"\0")
            text = text.decode(errors="replace")
            names.append(
                f"'{text}'" if text else f"number {row} of batch {batch - since}"
            )
        last = ops.convert_to_numpy(self._counts.last)[self._number]
        return names, int(last) - since
