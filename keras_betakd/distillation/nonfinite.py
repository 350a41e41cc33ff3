"""Finds and counts NaN and infinity in the models' outputs and in the losses.

A large model in float16 can overflow for some inputs. Averaged in, one such row would
make the student and the betas NaN for good, so non-finite rows are left out.
"""

import dataclasses
import functools

import keras
from keras import ops

from keras_betakd.distribution.replicas import over_replicas
from keras_betakd.preprocessing.records import ID_BYTES

# How many samples a message names.
NAMED = 8


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
        legal = ops.logical_or(ops.isfinite(logits), logits < 0)
        some = ops.any(ops.isfinite(logits), axis=-1)
        found.append(ops.logical_and(ops.all(legal, axis=-1), some))
    return functools.reduce(ops.logical_and, found)


def unweighted_nonfinite(student, weights):
    """Rows of weight 0 where the student is not finite: bool, the shape of `weights`.

    They enter no loss, but their gradients are NaN: 0 * NaN.

    Args:
        student: (B, K, V) logits, or (B, K, H) hidden states. -inf excludes a class.
        weights: (B, K), weights of the labels.
    """
    finite = ops.all(ops.logical_or(ops.isfinite(student), student < 0), axis=-1)
    return ops.logical_and(ops.logical_not(finite), weights == 0)


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
        self.teacher = NonFiniteLog(name="teacher")
        self.student = NonFiniteLog(name="student")
        self.unweighted = NonFiniteLog(name="unweighted")
        self.built = True

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

    def update(self, finite, nonfinite, unweighted, counts, weights, ids=None):
        """Adds a batch.

        Args:
            finite: (B, K), where the teacher is finite.
            nonfinite: list of (B, N), rows whose losses are not finite.
            unweighted: (B, K), from `unweighted_nonfinite`.
            counts: whether the batch is trained on and enters the means.
            weights: (B, K), weights of the labels.
            ids: (B, 64) from `encoded_ids`; `None` if the samples have none.
        """
        batch = ops.copy(ops.convert_to_tensor(self.batches))
        bad = ops.logical_and(ops.logical_not(finite), weights != 0)
        self.teacher.update(ops.sum(ops.cast(bad, "int32"), axis=1), batch, ids)
        rows = [ops.any(rows, axis=1) for rows in nonfinite]
        rows = ops.cast(functools.reduce(ops.logical_or, rows), "int32")
        self.student.update(rows, batch, ids)
        lost = ops.sum(ops.cast(unweighted, "int32"), axis=1)
        self.unweighted.update(lost, batch, ids)
        skipped = ops.cast(ops.logical_not(counts), "int32")
        self.skipped.assign(ops.convert_to_tensor(self.skipped) + skipped)
        self.batches.assign(batch + 1)


class NonFiniteLog(_Counts):
    """Counts non-finite values, and remembers in which samples the last ones were.

    Attributes:
        count: variable, how many, since the distiller was made.
        last: variable, number of the last batch that had one; -1 if none had.
        places: variable, (8, 2): batch and place in it of the last samples that had
            one, the newest batch first; -1 where there are fewer. Under data
            parallelism each process knows its own samples (of several replicas in it,
            those of the first).
        ids: variable, (8, 64): their ids as bytes.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.count = self._counter("count")
        nowhere = keras.initializers.Constant(-1)
        self.last = self._counter("last", initializer=nowhere)
        self.places = self._counter("places", (NAMED, 2), nowhere)
        self.ids = self._counter("ids", (NAMED, ID_BYTES))
        self.built = True

    def update(self, found, batch, ids):
        """Adds a batch.

        Args:
            found: (B,) int32, how many non-finite values each sample has.
            batch: its number.
            ids: (B, 64), or `None`.
        """
        count = over_replicas(ops.sum(found))
        last = ops.convert_to_tensor(self.last)
        self.last.assign(ops.where(count > 0, batch, last))
        self.count.assign(ops.convert_to_tensor(self.count) + count)
        size = ops.shape(found)[0]
        if ids is None:
            ids = ops.zeros((size, ID_BYTES), dtype="int32")
        rows = ops.arange(size, dtype="int32")
        places = ops.stack([ops.broadcast_to(batch, (size,)), rows], axis=1)
        places = ops.where(found[:, None] > 0, places, -1)
        places = ops.concatenate([places, ops.convert_to_tensor(self.places)])
        ids = ops.concatenate([ops.cast(ids, "int32"), ops.convert_to_tensor(self.ids)])
        # The samples without any are moved to the end; the rest keep their order.
        behind = ops.cast(places[:, 0] < 0, "int32")
        size = size + NAMED
        order = ops.argsort(behind * size + ops.arange(size, dtype="int32"))
        newest = order[:NAMED]
        self.places.assign(ops.take(places, newest, axis=0))
        self.ids.assign(ops.take(ids, newest, axis=0))

    def named(self, since):
        """Names the last samples that had a non-finite value, and the last batch.

        Args:
            since: number of the batch to look from.

        Returns:
            `(names, batch)`: a list of text, and the batch counted from `since`.
        """
        places = ops.convert_to_numpy(self.places)
        ids = ops.convert_to_numpy(self.ids).astype("uint8")
        names = []
        for (batch, row), name in zip(places.tolist(), ids, strict=True):
            if batch < since:
                continue
            text = name.tobytes().rstrip(b"\0").decode(errors="replace")
            names.append(
                f"'{text}'" if text else f"number {row} of batch {batch - since}"
            )
        return names, int(ops.convert_to_numpy(self.last)) - since
