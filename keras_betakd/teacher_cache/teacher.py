"""`CachedTeacher`: replaces a teacher whose outputs are on disk."""

import math
import os

import keras
from keras import ops

from keras_betakd.backends import put_at
from keras_betakd.models.base import ModelView
from keras_betakd.models.heads import HeadMatrix, LMHead
from keras_betakd.models.outputs import Features, ModelOutputs
from keras_betakd.models.views import register_view
from keras_betakd.teacher_cache.outputs import CachedOutputs

NEEDS_RECORDS = (
    "A cached teacher knows the answers to records that have ids, and nothing else. "
    'Give raw records ({"ids", "prompts", "responses", "images"}).'
)


@keras.saving.register_keras_serializable(package="keras_betakd")
class CachedTeacher(keras.Model):
    """A teacher that reads the outputs which `cache_teacher` stored on disk.

    It takes the teacher's place in a `BetaKDDistiller`. Of the teacher itself only the
    LM head is in memory, and only if the cache holds hidden states. Records are found
    by their ids, in any order and in any batches, and must be the same as when the
    teacher ran: their digests are compared.

    Args:
        directory: the folder that `cache_teacher` wrote.

    Raises:
        FileNotFoundError: there is no cache, or it is not complete.
        ValueError: the cache has another format, or a file is damaged.
        ImportError: the package safetensors is missing.

    Example:

    ```python
    cache_teacher(teacher, dataset, "teacher_cache")
    distiller = BetaKDDistiller(
        CachedTeacher("teacher_cache"), student, CosineProbsEnergy(), InstanceBeta()
    )
    ```
    """

    def __init__(
        self, directory: str | os.PathLike, name: str = "cached_teacher", **kwargs
    ):
        super().__init__(name=name, **kwargs)
        self.directory = str(directory)
        self.preprocessor = CachedOutputs(directory)
        self.kind = self.preprocessor.settings.kind
        self.head_arrays = {
            key: self._constant(key, value)
            for key, value in self.preprocessor.head().items()
        }
        self.built = True

    def _constant(self, name, value):
        weight = self.add_weight(
            shape=value.shape,
            dtype=str(value.dtype),
            initializer="zeros",
            trainable=False,
            autocast=False,
            name=name,
        )
        weight.assign(value)
        return weight

    def call(self, inputs):
        raise ValueError(NEEDS_RECORDS)

    def get_config(self):
        return {"name": self.name, "directory": self.directory}


class CachedTeacherView(ModelView):
    """The view of a `CachedTeacher`."""

    def __init__(self, model):
        super().__init__(model)
        settings = model.preprocessor.settings
        self.sees_hidden_states = True
        self.hidden_dim = settings.hidden_dim
        self.vocabulary_size = settings.vocabulary_size
        self.stored = set(settings.arrays)
        self.head = _HEADS[settings.kind](model)

    def logits(self, inputs, training=None):
        raise ValueError(NEEDS_RECORDS)

    def sees(self, features):
        if features == "image_logits":
            return self.model.kind == "hidden" and "image_hidden_states" in self.stored
        return {"hidden_states": "rows"}.get(features, features) in self.stored

    def reader(self, wanted, layers=()):
        return CachedReader(self, wanted)


register_view("CachedTeacher", CachedTeacherView)


class CachedReader:
    """Hands on what is stored, as a `FeatureReader` what a model makes.

    Args:
        view: a `CachedTeacherView`.
        wanted: set of names of `Features`.

    Raises:
        ValueError: features that the cache does not hold.
    """

    def __init__(self, view, wanted):
        self.wanted = set(wanted)
        missing = sorted(name for name in self.wanted if not view.sees(name))
        if missing:
            raise ValueError(
                f"The teacher cache holds no {', '.join(missing)}, which an energy "
                "needs. Build it of a distiller with the same energies."
            )

    def logits(self, inputs, training=None):
        raise ValueError(NEEDS_RECORDS)

    def outputs(self, inputs, positions, training=None):
        return ModelOutputs(
            rows=inputs.get("rows"),
            packed=inputs.get("packed"),
            hidden_mean=inputs.get("hidden_mean"),
            features=self._features(inputs) if self.wanted else None,
        )

    def _features(self, inputs):
        names = {name: name for name in self.wanted} | {"present": "present"}
        if "hidden_states" in names:
            names["hidden_states"] = "rows"
        return Features.of({k: inputs[v] for k, v in names.items() if v in inputs})


class _StoredHead(LMHead):
    """Computes soft_cap(rows @ kernel^T) + bias of stored hidden states."""

    def __init__(self, model):
        super().__init__(lambda rows: self.matrix()(rows))
        self.arrays = model.head_arrays
        self.dtype = model.preprocessor.settings.head_dtype
        self.soft_cap = model.preprocessor.settings.soft_cap

    has_matrix = True

    def matrix(self):
        kernel, bias = (
            array if array is None else ops.convert_to_tensor(array)
            for array in map(self.arrays.get, ("kernel", "bias"))
        )
        return HeadMatrix(kernel, False, self.dtype, bias, self.soft_cap)


class _TopClassesHead(LMHead):
    """Computes `top_classes_logits` of stored rows."""

    def __init__(self, model):
        settings = model.preprocessor.settings
        sizes = settings.top_k, settings.vocabulary_size
        super().__init__(lambda rows: top_classes_logits(rows, *sizes))


class _NoHead(LMHead):
    """Returns stored logits unchanged."""

    def __init__(self, model):
        super().__init__(lambda rows: rows)


_HEADS = {"hidden": _StoredHead, "top_k": _TopClassesHead, "logits": _NoHead}


def top_classes_logits(rows, k, classes):
    """Log-probabilities of all classes; those not stored share the rest equally.

    Args:
        rows: (..., 2 k + 1), from `top_classes`: k log-probabilities, k ids, and log r,
            r being the probability of the V - k other classes together.
        k: the number of stored classes.
        classes: V.

    Returns:
        (..., V), log(r / (V - k)) for a class that is not stored.
    """
    shape = ops.shape(rows)[:-1]
    rows = ops.reshape(rows, (-1, rows.shape[-1]))
    values, ids = rows[:, :k], rows[:, k:-1]
    each = rows[:, -1:] - math.log(classes - k)
    logits = ops.broadcast_to(each, (ops.shape(rows)[0], classes))
    logits = put_at(logits, ops.cast(ids, "int32"), values)
    return ops.reshape(logits, (*shape, classes))
