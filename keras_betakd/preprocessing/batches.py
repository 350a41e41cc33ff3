"""Converts the data that `fit` takes to the distiller's form of a batch.

That is `(x, y, sample_weight)`: labels y (B, K), their weights (B, K), and a dict x:

    student, teacher    The inputs of each model. Images that both take in the same form
                        are among the student's only.
    sample_weight       (B, K): the weights again. Keras passes x alone to `call`, where
                        the betas leave out labels of weight 0.
    task_weight         (B, K): a factor of the weights in the cross-entropy alone, not
                        in the energies: 0 where the teacher is compared with the
                        student and there is no label to learn. Only if it was given.
    student_positions,  (B, K): the positions in each model's sequence that predict the
    teacher_positions   labels. Absent where the labels are those of all positions.
    aligned             (B, K): 1 where teacher and student predict after the same text,
                        0 elsewhere. Only for models with different tokenizers.
    ids                 (B, 64): the ids of the records as bytes. Only if they have ids.

Of several teachers, `teacher`, `teacher_positions` and `aligned` are dicts by their
names.
"""

import numbers

import numpy as np
from keras import ops, tree

from keras_betakd.data.batches import EpochDataset
from keras_betakd.preprocessing.adapters import (
    RecordBatches,
    as_dataset,
    is_raw_records,
    raw_records,
    weighted_records,
)
from keras_betakd.preprocessing.epochs import FormattedDataset, sets_its_order
from keras_betakd.preprocessing.iterables import StreamBatches
from keras_betakd.preprocessing.labels import (
    checked_labels,
    expect_classes,
    expect_weights,
)
from keras_betakd.preprocessing.record_checks import expect_known_keys
from keras_betakd.preprocessing.records import PlacedRecords, record_ids

_MODELS = {"student", "teacher"}
_POSITIONS = {"student_positions", "teacher_positions"}
_OTHERS = ("sample_weight", "task_weight", "aligned", "ids")
_KEYS = (*sorted(_MODELS), *sorted(_POSITIONS), *_OTHERS)
_LABELS_BESIDE = (
    'Raw records have their labels under the key "responses", and data sets yield '
    '`(x, y, sample_weight)`, or raw records with a key "sample_weight". Received: '
    "`{}` beside x of type {}"
)


def by_model(x):
    """`x` if it names the inputs of each model, else the same inputs for both."""
    if isinstance(x, dict) and _MODELS <= set(x):
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
        logits_shape: function of a batch's `x` that returns (B, ..., V), the shape of
            the student's logits at the labels, `None` where it is unknown.
        labelled: whether a batch without labels is an error.
        reads_labels: whether labels are read where their task weight is 0, too.
        fills: whether shorter batches of raw records are filled up to the `full_size`
            of their data set, because a step is compiled anew for each size.

    Attributes:
        full_size: the records of all batches but the last, set by `formatted`; `None`
            where batches stay as they are.
    """

    def __init__(
        self,
        preprocessor=None,
        batch_size=None,
        parts=1,
        logits_shape=None,
        labelled=True,
        reads_labels=True,
        fills=False,
    ):
        self.preprocessor = preprocessor
        self.batch_size = batch_size
        self.parts = parts
        self.logits_shape = logits_shape
        self.labelled = labelled
        self.reads_labels = reads_labels
        self.fills = fills
        self.full_size = None

    def __call__(self, batch, places=None):
        """A batch `(x, y, sample_weight)`, or of raw records, in the distiller's form.

        Args:
            batch: the batch.
            places: function of the number of records that returns for each a string
                that says where in the data it is; `None` if this is unknown.
        """
        if _is_rows(batch) or not isinstance(batch, (tuple, list)):
            batch = (batch,)
        x, y, sample_weight = (*batch, None, None)[:3]
        if _is_rows(x):
            x = raw_records(x)
        names, full_size = None, None
        if is_raw_records(x):
            full_size = self.full_size
            if y is not None:
                raise ValueError(_LABELS_BESIDE.format("y", type(x).__name__))
            x, _ = weighted_records(x, sample_weight)
            x, y, sample_weight, names = self._preprocess(_placed(x, places))
        x = by_model(_expect_form(x))
        if y is None:
            return self._without_labels(x)
        shape = (
            self.logits_shape(x) if self.logits_shape else (None,) * (np.ndim(y) + 1)
        )
        y = checked_labels(y, shape)
        if len(y) == 0:
            raise ValueError(f"There are no examples. Received: x with {_described(x)}")
        if sample_weight is None:
            sample_weight = x.get("sample_weight", np.ones(np.shape(y), "float32"))
        sample_weight = per_label(sample_weight, np.shape(y))
        names = names or _names(x, places, len(y))
        x, read = {**x, "sample_weight": sample_weight}, True
        if x.get("task_weight") is not None:
            task = per_label(x["task_weight"], np.shape(y), "task_weight")
            x["task_weight"] = task
            expect_weights("task_weight", task, names)
            read = self.reads_labels | (task > 0)
        y = expect_classes(y, sample_weight, shape[-1], names, read)
        return padded(x, y, sample_weight, self.parts, self.batch_size, full_size)

    def _without_labels(self, x):
        if self.labelled:
            raise ValueError(
                "The data has no labels: pass `y`, or batches `(x, y)` or "
                "`(x, y, sample_weight)`, or raw records, a dict with "
                f'"prompts" and "responses". Received: x with {_described(x)}'
            )
        return (x,)

    def _preprocess(self, records):
        if self.preprocessor is None:
            raise ValueError(
                "Raw records need a preprocessor, and teacher or student has none "
                "attached. Pass `preprocessor=DistillationPreprocessor(...)` to the "
                "distiller, or batches in the answer-position form. Received: "
                f"keys={sorted(records)}"
            )
        weight, task = records.get("sample_weight"), records.get("task_weight")
        x, y, sample_weight = self.preprocessor(records)  # which checks the records
        names = record_ids(records, len(records["prompts"]))
        if weight is not None:
            sample_weight = sample_weight * per_label(weight, np.shape(y))
        if task is not None:
            x["task_weight"] = per_label(task, np.shape(y), "task_weight")
        return x, y, sample_weight, names


def _is_rows(batch):
    """Whether a batch is a list of raw records, one dict for each."""
    if not isinstance(batch, (tuple, list)) or not batch:
        return False
    if not all(is_raw_records(row) for row in batch):
        return False
    if isinstance(batch, list) or len(batch) > 1:
        return True
    # A tuple of one is the form `(x,)` where x holds columns.
    return isinstance(batch[0]["prompts"], (str, bytes))


def _placed(records, places):
    """Raw records with their places, where they are known; an error for one alone."""
    prompts = records["prompts"]
    # Not `np.ndim`, which would decode bytes as ASCII and refuse turns of any number.
    several = hasattr(prompts, "__len__") and getattr(prompts, "shape", None) != ()
    if isinstance(prompts, (str, bytes)) or not several:
        raise ValueError(
            "Raw records come in batches: every entry holds one value for each record. "
            "Batch a `tf.data.Dataset` by `.batch(8)`, give a `DataLoader` a "
            f'`batch_size`. Received: "prompts" of type {type(prompts).__name__}'
        )
    if isinstance(records, PlacedRecords) or places is None:
        return records
    return PlacedRecords(records, places(len(prompts)))


def _expect_form(x):
    """`x`, unless it is a dict that lacks or misspells keys of the distiller's form."""
    keys = set(x) if isinstance(x, dict) else set()
    if not keys & {*_MODELS, *_POSITIONS}:
        return x
    expect_known_keys(sorted(keys), _KEYS, "Batches with inputs for each model")
    lacking = _MODELS - keys
    if lacking:
        # A model without positions predicts at all of its positions.
        raise ValueError(
            f"A batch with inputs for each model has the keys {sorted(_MODELS)}; where "
            "logits are read at answer positions only, their positions too: "
            f"{sorted(_POSITIONS)}. Missing: {sorted(lacking)}. Received: "
            f"keys={sorted(map(str, keys))}"
        )
    return x


def _names(x, places, size):
    """Strings that name the examples of a batch in errors; `None` if unknown."""
    names = places(size) if places is not None else None
    if x.get("ids") is None:
        return names
    rows = ops.convert_to_numpy(x["ids"]).astype("uint8")
    texts = [row.tobytes().rstrip(bytes(1)).decode(errors="replace") for row in rows]
    ids = [f"'{text}'" for text in texts]
    return (
        ids
        if names is None
        else [f"{i} ({n})" for i, n in zip(ids, names, strict=True)]
    )


def _described(x):
    student = x["student"]
    if isinstance(student, dict):
        return f"the keys {sorted(map(str, student))}"
    if isinstance(student, (list, tuple)):
        return f"a {type(student).__name__} of {len(student)}"
    return f"inputs of shape {np.shape(student)}"


def per_label(sample_weight, shape, name="sample_weight"):
    """One weight per label; weights (B,) or (B, 1) are repeated for all K labels.

    Args:
        sample_weight: the weights.
        shape: that of the labels, (B, K).
        name: what the weights are called in errors.

    Raises:
        ValueError: they are no numbers, or of another shape.
    """
    weight = _real_numbers(sample_weight, name)
    if weight.ndim < len(shape):
        weight = weight.reshape(weight.shape + (1,) * (len(shape) - weight.ndim))
    try:
        return np.array(np.broadcast_to(weight, shape))
    except ValueError:
        raise ValueError(
            f"`{name}` must have one entry for each label, or one for each example. "
            f"Received: {name} of shape {weight.shape}, labels of shape {shape}"
        ) from None


def _real_numbers(sample_weight, name):
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
            f"`{name}` must hold numbers. Received: "
            f"{repr(sample_weight)[:80]}, of type {weight.dtype}"
        )
    return weight.astype("float32")


def formatted(
    x,
    y=None,
    sample_weight=None,
    batch_size=None,
    shuffle=False,
    formatter=None,
    steps=None,
):
    """The arguments of `fit` with the data in the distiller's form.

    Args:
        x, y, sample_weight: as for `keras.Model.fit`. Raw records may have their
            weights in `sample_weight` or under the key "sample_weight".
        batch_size: for arrays and raw records; defaults to 32.
        shuffle: whether to shuffle raw records, or else the order of batches, in each
            pass over the data.
        formatter: a `BatchFormatter`; one without preprocessor if `None`.
        steps: the number of batches of an epoch, for data that comes in batches.

    Returns:
        `(x, y, sample_weight)`; where the data comes in batches, a `FormattedDataset`
        and two `None`.

    Raises:
        ValueError: labels or weights beside data that has its own, or labels or
            weights that cannot be used.
    """
    formatter = formatter or BatchFormatter()
    if isinstance(x, FormattedDataset):
        return x, None, None
    x, sample_weight = weighted_records(x, sample_weight)
    dataset = as_dataset(x, batch_size, shuffle)
    if dataset is None:
        formatter.batch_size = batch_size or 32
        return (*formatter((x, y, sample_weight), _number_of_data), None, None)[:3]
    if y is not None or sample_weight is not None:
        given = "y" if y is not None else "sample_weight"
        raise ValueError(_LABELS_BESIDE.format(given, type(x).__name__))
    # A dataset that shuffles itself is not shuffled a second time.
    shuffle = shuffle and not sets_its_order(dataset)
    steps = int(steps) if isinstance(steps, np.integer) else steps
    formatter.full_size = full_size(dataset) if formatter.fills else None
    ahead = _ahead(dataset, formatter.preprocessor)
    return FormattedDataset(dataset, formatter, shuffle, steps, **ahead), None, None


def _ahead(dataset, preprocessor):
    """The arguments of `FormattedDataset` for what is formatted ahead.

    Nothing is where the user's data set has workers of its own, and where batches need
    no preprocessing.
    """
    if preprocessor is None or dataset.workers > 1 or dataset.use_multiprocessing:
        return {}
    return {
        "workers": getattr(preprocessor, "workers", 0),
        "max_queue_size": getattr(preprocessor, "max_queue_size", 1),
    }


def _number_of_data(size):
    return [f"number {i} of the data" for i in range(size)]


def full_size(dataset):
    """The records of each batch of a `PyDataset` but the last; `None` if unknown.

    And `None` where there is one batch alone: it is always of the same size. In data
    sets of others `batch_size` may be anything, as in those that a student answers.
    """
    ours = isinstance(dataset, (RecordBatches, StreamBatches, EpochDataset))
    if not ours or dataset.num_batches == 1:
        return None
    return getattr(dataset, "batch_size", None)


def padded(x, y, sample_weight, parts, batch_size=None, full_size=None):
    """Pads a batch to its full size, and to equal parts, one for each device.

    It is padded with copies of the last example that have weight 0, which change no
    loss and no gradient.

    Args:
        x: nested dict of (N, ...) arrays.
        y, sample_weight: (N, ...) arrays.
        parts: the number of parts.
        batch_size: the batch size that Keras splits the data into; N if `None`.
        full_size: the size of a batch that is not the last one; N if `None`.

    Returns:
        `(x, y, sample_weight)`.
    """
    if parts > 1:
        x = tree.map_structure(_bool_as_int, x)
    size = len(y)
    last = size % batch_size if batch_size else max(size, full_size or 0)
    missing = -last % parts + (0 if batch_size else last - size)
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
