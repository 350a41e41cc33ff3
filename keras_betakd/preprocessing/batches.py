"""Converts the data that `fit` takes to the distiller's form of a batch.

That is `(x, y, sample_weight)`: labels y (B, K), their weights (B, K), and a dict x:

    student, teacher    The inputs of each model. Images that both take in the same form
                        are among the student's only.
    sample_weight       (B, K): the weights again. Keras passes x alone to `call`, where
                        the betas leave out labels of weight 0.
    student_positions,  (B, K): the positions in each model's sequence that predict the
    teacher_positions   labels. Absent where the labels are those of all positions.
    aligned             (B, K): 1 where teacher and student predict after the same text,
                        0 elsewhere. Only for models with different tokenizers.
    ids                 (B, 64): the ids of the records as bytes. Only if they have ids.
"""

import numbers

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
    """`x` if it names the inputs of each model, else the same inputs for both."""
    if isinstance(x, dict) and {"student", "teacher"} <= set(x):
        return x
    return {"student": x, "teacher": x}


class BatchFormatter:
    """Callable that converts one batch to the distiller's form.

    Args:
        preprocessor: a `DistillationPreprocessor`, or `None` for models that take
            the batches' own inputs.
        batch_size: the batch size that Keras splits the data into, if the whole data
            is given as one batch.
        parts: the number of equal parts that a batch is split into.
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
        return padded_to_parts(x, y, sample_weight, self.parts, self.batch_size)

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
    """One weight per label; weights (B,) or (B, 1) are repeated for all K labels."""
    weight = _real_numbers(sample_weight)
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


def _real_numbers(sample_weight):
    """Weights as float32; texts, complex numbers and objects would become some."""
    weight = ops.convert_to_numpy(sample_weight)
    is_wrong = weight.dtype.kind in "SUcmM"
    if weight.dtype.kind == "O":
        # Whole numbers that no type of NumPy holds are objects, too.
        is_wrong = not all(
            isinstance(w, numbers.Real) and abs(w) < 2**64 for w in weight.flat
        )
    if is_wrong:
        raise ValueError(
            "`sample_weight` must hold numbers. Received: "
            f"{repr(sample_weight)[:80]}, of type {weight.dtype}"
        )
    return weight.astype("float32")


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
    """A `PyDataset` that formats each batch when it is read.

    Args:
        dataset: a `PyDataset`. If it has an attribute `epoch` and a method
            `start_epoch(number)`, it is set to each epoch by its number.
        formatter: callable that is applied to each batch.
        shuffle: whether to shuffle the order of the batches in each epoch.
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
        """Sets the order of the batches to that of epoch number `epoch`."""
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
    """The arguments of `fit` with the data in the distiller's form.

    Args:
        x, y, sample_weight: as for `keras.Model.fit`.
        batch_size: for arrays and a dict of raw records; defaults to 32.
        shuffle: whether to shuffle a dict of raw records, or else the order of batches,
            in each epoch.
        preprocessor: a `DistillationPreprocessor` or `None`.
        parts: the number of equal parts that each batch is split into.

    Returns:
        `(x, y, sample_weight)`; where the data comes in batches, a `FormattedDataset`
        and two `None`.

    Raises:
        ValueError: labels or weights beside data that has its own, or labels or
            weights that cannot be used.
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
    # A dataset that shuffles itself is not shuffled a second time.
    has_order = hasattr(dataset, "start_epoch") or isinstance(dataset, IterableBatches)
    return FormattedDataset(dataset, formatter, shuffle and not has_order), None, None


def padded_to_parts(x, y, sample_weight, parts, batch_size=None):
    """Pads the last batch so that it divides into equal parts, one for each device.

    It is padded with copies of the last example that have weight 0, which change no
    loss and no gradient.

    Args:
        x: nested dict of (N, ...) arrays.
        y, sample_weight: (N, ...) arrays.
        parts: the number of parts.
        batch_size: the batch size that Keras splits the data into; N if `None`.

    Returns:
        `(x, y, sample_weight)`.
    """
    if parts > 1:
        x = tree.map_structure(_bool_as_int, x)
    size = len(y)
    last = size % batch_size if batch_size else size
    missing = -last % parts
    if not missing:
        return x, y, sample_weight

    def pad(value):
        value = ops.convert_to_numpy(value)
        return np.concatenate([value, np.repeat(value[-1:], missing, axis=0)])

    x, y, weight = tree.map_structure(pad, (x, y, sample_weight))
    weight[size:] = 0
    return {**x, "sample_weight": weight}, y, weight


def _bool_as_int(value):
    """Masks as int32: Keras takes the mean of a first batch over TensorFlow's replicas,
    which fails for bool."""
    value = ops.convert_to_numpy(value)
    return value.astype("int32") if value.dtype == bool else value


class EpochOrder(keras.callbacks.Callback):
    """Sets the data's order at the start of each epoch by the epoch's number.

    A training that is resumed then reads the data in the order of one that was never
    interrupted.

    Args:
        dataset: a `FormattedDataset`: has `epoch`, the number of its next epoch, and
            `start_epoch(number)`.
        initial_epoch: `initial_epoch` of `fit`.
    """

    def __init__(self, dataset, initial_epoch):
        super().__init__()
        self.dataset = dataset
        # A data set that was used before goes on instead of repeating its first epoch.
        self.ahead = max(0, dataset.epoch - initial_epoch)

    def on_epoch_begin(self, epoch, logs=None):
        self.dataset.start_epoch(self.ahead + epoch)
