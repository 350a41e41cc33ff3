"""Brings what Keras users pass to `fit` into the one form the distiller computes on.

    x = {"student": ..., "teacher": ..., "sample_weight": (B, K),
         "student_positions": (B, K), "teacher_positions": (B, K)}

The positions are there for models whose hidden states are gathered. The sample
weight travels in x because the beta layers run inside the distiller's `call`, where
Keras passes x alone, and must leave out the rows that are not supervised.
"""

import math

import keras
import numpy as np
from keras import ops, tree


def by_model(x):
    """Inputs for each of the two models: x itself, unless it names them."""
    if isinstance(x, dict) and {"student", "teacher"} <= set(x):
        return x
    return {"student": x, "teacher": x}


def is_raw_records(x):
    """Whether x is a dict of raw records, for a preprocessor to turn into tensors."""
    return isinstance(x, dict) and "prompts" in x


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
        self.seed = _drawn_seed() if shuffle else None
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


class RecordBatches(keras.utils.PyDataset):
    """Batches of a dict of arrays or lists, all of one length.

    Args:
        records: dict of arrays or lists.
        batch_size: how many records a batch.
        shuffle: whether to deal the records anew each epoch, in an order that rests on
            NumPy's global generator now (`keras.utils.set_random_seed` makes it
            repeatable) and on the epoch's number.
    """

    def __init__(self, records, batch_size=32, shuffle=False):
        super().__init__()
        self.records = records
        self.size = len(records["prompts"])
        self.batch_size = batch_size
        self.seed = _drawn_seed() if shuffle else None
        self.start_epoch(0)
        for key, values in records.items():
            if values is not None and len(values) != self.size:
                raise ValueError(
                    "All entries of raw records must have one length. Received: "
                    f'{self.size} "prompts", {len(values)} "{key}"'
                )

    @property
    def num_batches(self):
        return math.ceil(self.size / self.batch_size)

    def __getitem__(self, index):
        start = index * self.batch_size
        return take_records(self.records, self.order[start : start + self.batch_size])

    def start_epoch(self, epoch):
        """Deals the records of the epoch of this number."""
        self.epoch = epoch
        self.order = np.arange(self.size)
        if self.seed is not None:
            np.random.default_rng((self.seed, epoch)).shuffle(self.order)

    def on_epoch_end(self):
        self.start_epoch(self.epoch + 1)


def _drawn_seed():
    return int(np.random.randint(2**31))


class IterableBatches(keras.utils.PyDataset):
    """Batches of any iterable that can be started again, in its own order.

    Args:
        iterable: a `torch` `DataLoader` or a `tf.data.Dataset`.
        num_batches: how many there are, `None` when endless.
    """

    def __init__(self, iterable, num_batches):
        super().__init__()
        self.iterable = iterable
        self._num_batches = num_batches
        self._iterator = None

    @property
    def num_batches(self):
        return self._num_batches

    def __getitem__(self, index):
        if self._iterator is None:
            self._iterator = iter(self.iterable)
        try:
            return next(self._iterator)
        except StopIteration:
            self._iterator = iter(self.iterable)
            return next(self._iterator)


def take_records(records, rows):
    """The rows (indices) of a dict of raw records."""
    return {k: v if v is None else [v[i] for i in rows] for k, v in records.items()}


def split_records(records, validation_split):
    """Two dicts of raw records: the first part, and the last `validation_split`."""
    size = len(records["prompts"])
    first = size - int(size * validation_split)
    if not 0 < first < size:
        raise ValueError(
            f"`validation_split` leaves a part of the {size} records empty. "
            f"Received: validation_split={validation_split}"
        )
    rows = np.arange(size)
    return take_records(records, rows[:first]), take_records(records, rows[first:])


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


def as_dataset(x, batch_size, shuffle=False):
    """A `PyDataset` of the batches of x, or `None` if x is arrays already."""
    if isinstance(x, keras.utils.PyDataset):
        return x
    if is_raw_records(x):
        return RecordBatches(x, batch_size or 32, shuffle)
    if hasattr(x, "as_numpy_iterator"):  # tf.data.Dataset
        return _from_tf_dataset(x)
    if hasattr(x, "batch_sampler"):  # torch.utils.data.DataLoader
        return IterableBatches(_Converted(x, _torch_to_numpy), len(x))
    leaves = tree.flatten(x)
    if leaves and all(hasattr(leaf, "shape") for leaf in leaves):
        return None
    raise ValueError(
        "`x` must be raw records (a dict of lists or arrays), arrays, a "
        "`keras.utils.PyDataset`, a `tf.data.Dataset` or a torch `DataLoader`. A "
        "generator cannot be started again for a second epoch. Received: "
        f"x of type {type(x)}"
    )


def _from_tf_dataset(dataset):
    count = int(dataset.cardinality())
    if count == -2:  # unknown: a filter or a generator is in the pipeline
        count = sum(1 for _ in dataset)
    batches = _Converted(dataset, _tf_to_numpy)
    return IterableBatches(batches, None if count == -1 else count)


class _Converted:
    """The batches of an iterable, every leaf converted; can be started again."""

    def __init__(self, iterable, convert):
        self.iterable = iterable
        self.convert = convert

    def __iter__(self):
        for batch in self.iterable:
            yield tree.map_structure(self.convert, batch)


def _tf_to_numpy(value):
    if hasattr(value, "to_list"):  # tf.RaggedTensor: rows of different length
        return [[image.numpy() for image in row] for row in value]
    return value.numpy()


def _torch_to_numpy(value):
    return value.detach().cpu().numpy() if hasattr(value, "detach") else value


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
