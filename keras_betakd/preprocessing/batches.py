"""Brings what Keras users pass to `fit` into the one form the distiller computes on.

    x = {"student": ..., "teacher": ..., "sample_weight": (B, K),
         "student_positions": (B, K), "teacher_positions": (B, K)}

The positions are there for models whose hidden states are gathered. The sample
weight travels in x because the beta layers run inside the distiller's `call`, where
Keras passes x alone, and must leave out the rows that are not supervised.
"""

import keras
import numpy as np
from keras import ops, tree

from keras_betakd.preprocessing.adapters import (
    IterableBatches,
    as_dataset,
    drawn_seed,
    is_raw_records,
)


def by_model(x):
    """Inputs for each of the two models: x itself, unless it names them."""
    if isinstance(x, dict) and {"student", "teacher"} <= set(x):
        return x
    return {"student": x, "teacher": x}


class BatchFormatter:
    """Callable that brings one batch into the distiller's form.

    Args:
        preprocessor: a `DistillationPreprocessor`, or `None` for models that take
            their inputs as they come.
        batch_size: the size that Keras will cut batches to, where the whole data comes
            at once.
        parts: into how many parts of one size a batch must be divisible.
    """

    def __init__(self, preprocessor=None, batch_size=None, parts=1):
        self.preprocessor = preprocessor
        self.batch_size = batch_size
        self.parts = parts

    def __call__(self, batch):
        batch = (batch,) if isinstance(batch, dict) else tuple(batch)
        x, y, sample_weight = (*batch, None, None)[:3]
        if is_raw_records(x):
            weight = x.get("sample_weight")
            x, y, sample_weight = self._preprocess(x)
            if weight is not None:
                sample_weight = sample_weight * _per_label(weight, y)
        x = by_model(x)
        if y is None:
            return (x,)
        if sample_weight is None:
            sample_weight = x.get("sample_weight", np.ones(np.shape(y), "float32"))
        sample_weight = _per_label(sample_weight, y)
        _check_labels(y, sample_weight)
        x = {**x, "sample_weight": sample_weight}
        return filled_up(x, y, sample_weight, self.parts, self.batch_size)

    def _preprocess(self, records):
        if self.preprocessor is None:
            raise ValueError(
                "Raw records need a preprocessor, and teacher or student has none "
                "attached. Pass `preprocessor=DistillationPreprocessor(...)` to the "
                "distiller, or batches in the answer-position form. Received: "
                f"keys={sorted(records)}"
            )
        return self.preprocessor(records)


def _per_label(sample_weight, y):
    """One weight for each label: weights (B,) or (B, 1) are those of all K labels."""
    weight = ops.convert_to_numpy(sample_weight).astype("float32")
    shape = np.shape(y)
    if weight.ndim < len(shape):
        weight = weight.reshape(weight.shape + (1,) * (len(shape) - weight.ndim))
    try:
        return np.array(np.broadcast_to(weight, shape))
    except ValueError:
        raise ValueError(
            "`sample_weight` must have one entry for each label, or one for each "
            f"example. Received: sample_weight of shape {weight.shape}, labels of "
            f"shape {shape}"
        ) from None


def _check_labels(y, sample_weight):
    if not np.isfinite(sample_weight).all() or (sample_weight < 0).any():
        raise ValueError(
            "`sample_weight` must be finite and not negative. Received: values from "
            f"{np.nanmin(sample_weight)} to {np.nanmax(sample_weight)}"
        )
    bad = (ops.convert_to_numpy(y) < 0) & (sample_weight > 0)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        label = ops.convert_to_numpy(y)[where]
        raise ValueError(
            f"Label {label} at {where} is no class, but its `sample_weight` is "
            f"{sample_weight[where]}. Give ignored labels (-100, -1) the weight 0."
        )


class FormattedDataset(keras.utils.PyDataset):
    """A `PyDataset` whose batches are formatted as they are read.

    Args:
        dataset: a `PyDataset`. If it has a method `start_epoch` and an attribute
            `epoch`, it is told an epoch's number.
        formatter: what is called on each batch.
        shuffle: whether to deal the batches in another order each epoch.
    """

    def __init__(self, dataset, formatter, shuffle=False):
        super().__init__(
            workers=dataset.workers,
            use_multiprocessing=dataset.use_multiprocessing,
            max_queue_size=dataset.max_queue_size,
        )
        self.dataset = dataset
        self.formatter = formatter
        self.seed = drawn_seed() if shuffle else None
        self.start_epoch(getattr(dataset, "epoch", 0))

    @property
    def num_batches(self):
        return self.dataset.num_batches

    def start_epoch(self, epoch):
        """Deals the batches of the epoch of this number."""
        self.epoch = epoch
        if getattr(self.dataset, "epoch", epoch) != epoch:
            self.dataset.start_epoch(epoch)
        size = self.num_batches
        shuffles = self.seed is not None and size is not None
        generator = np.random.default_rng((self.seed or 0, epoch))
        self.order = generator.permutation(size) if shuffles else None

    def __getitem__(self, index):
        index = index if self.order is None else int(self.order[index])
        return self.formatter(self.dataset[index])

    def on_epoch_begin(self):
        self.dataset.on_epoch_begin()

    def on_epoch_end(self):
        self.dataset.on_epoch_end()
        self.start_epoch(self.epoch + 1)


def formatted(
    x,
    y=None,
    sample_weight=None,
    batch_size=None,
    shuffle=False,
    preprocessor=None,
    parts=1,
):
    """Whatever `fit` was given, in the distiller's form.

    Args:
        x, y, sample_weight: as for `keras.Model.fit`.
        batch_size: for raw records given as arrays; defaults to 32.
        shuffle: for raw records given as arrays, and for the order of batches.
        preprocessor: a `DistillationPreprocessor` or `None`.
        parts: into how many parts of one size each batch must be divisible.

    Returns:
        `(x, y, sample_weight)`; a `PyDataset` and two `None` where the data comes in
        batches of its own.
    """
    formatter = BatchFormatter(preprocessor, parts=parts)
    if isinstance(x, FormattedDataset):
        return x, None, None
    dataset = as_dataset(x, batch_size, shuffle)
    if dataset is None:
        formatter = BatchFormatter(preprocessor, batch_size or 32, parts)
        return (*formatter((x, y, sample_weight)), None, None)[:3]
    if y is not None or sample_weight is not None:
        raise ValueError(
            "Raw records and data sets carry their labels and weights themselves. "
            f"Received: `y` or `sample_weight` beside x of type {type(x)}"
        )
    # What has an order of its own is not dealt once more.
    dealt = hasattr(dataset, "start_epoch") or isinstance(dataset, IterableBatches)
    return FormattedDataset(dataset, formatter, shuffle and not dealt), None, None


def filled_up(x, y, sample_weight, parts, batch_size=None):
    """The batches, with copies of the last example of weight 0 behind the last one.

    A part of a batch for each device must be of one size. An example without weight
    changes no number.

    Args:
        x: dict of arrays, nested.
        y, sample_weight: (N, ...) arrays.
        parts: what every batch must be divisible by.
        batch_size: the size that Keras will cut batches to; N if `None`.

    Returns:
        `(x, y, sample_weight)`.
    """
    if parts > 1:
        x = tree.map_structure(_no_bool, x)
    size = len(y)
    last = size % batch_size if batch_size else size
    missing = -last % parts
    if not missing:
        return x, y, sample_weight

    def fill(value):
        value = ops.convert_to_numpy(value)
        return np.concatenate([value, np.repeat(value[-1:], missing, axis=0)])

    x, y, weight = tree.map_structure(fill, (x, y, sample_weight))
    weight[size:] = 0
    return {**x, "sample_weight": weight}, y, weight


def _no_bool(value):
    """Masks as numbers: Keras takes the mean of a first batch over TensorFlow's
    replicas, which truth values do not have."""
    value = ops.convert_to_numpy(value)
    return value.astype("int32") if value.dtype == bool else value


class EpochOrder(keras.callbacks.Callback):
    """Starts each epoch's data at its number, also after a training was broken off.

    Args:
        dataset: has `epoch`, the number of the epoch it would deal next, and
            `start_epoch(number)`.
        initial_epoch: that of `fit`.
    """

    def __init__(self, dataset, initial_epoch):
        super().__init__()
        self.dataset = dataset
        # A data set that was used before goes on, instead of repeating its first epoch.
        self.ahead = max(0, dataset.epoch - initial_epoch)

    def on_epoch_begin(self, epoch, logs=None):
        self.dataset.start_epoch(self.ahead + epoch)
