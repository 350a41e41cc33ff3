"""`DistillerSaving`: saves student and betas always, the teacher in archives only.

Weights files hold what training changes: student, betas, energy state, optimizer.
The teacher, frozen and several times as large, is passed again before loading. The
complete archive of `save("x.keras")` holds it too.
"""

import contextlib
import os

import keras

from keras_betakd.distillation.summary import bytes_of
from keras_betakd.files import atomic_write
from keras_betakd.preprocessing.preprocessor import DistillationPreprocessor

_RANDOM = "random_state_"


class _Untracked:
    """Holds a model out of reach of Keras' tracking and saving."""

    def __init__(self, model):
        self.model = model


class DistillerSaving:
    """Mixin that overrides what Keras' saving asks of a model.

    It keeps the teacher frozen and out of weights files, and writes files atomically.
    Mixed into `BetaKDDistiller`, in front of `keras.Model`; it reads `student`,
    `energies`, `betas`, `task_beta` and the constructor's other arguments, and calls
    `freeze_parts()`.
    """

    _hides_teacher = False

    @property
    def teacher(self):
        if self._hides_teacher:
            # Not an AttributeError: PyTorch would then look among its modules.
            raise RuntimeError("The teacher is not part of weights files.")
        return self._teacher_holder.model

    @teacher.setter
    def teacher(self, value):
        # Keras tracks the value before this runs, so its variables are known to the
        # JAX trainer; held untracked, it can be left out of weights files.
        self._teacher_holder = _Untracked(value)

    @property
    def layers(self):
        layers = super().layers
        if self._hides_teacher:
            layers = [x for x in layers if x is not self._teacher_holder.model]
        return layers

    @property
    def trainable(self):
        return keras.Model.trainable.fget(self)

    @trainable.setter
    def trainable(self, value):
        keras.Model.trainable.fset(self, value)
        self.freeze_parts()

    @contextlib.contextmanager
    def _without_teacher(self):
        self._hides_teacher = True
        try:
            yield
        finally:
            self._hides_teacher = False

    def save(self, filepath, overwrite=True, **kwargs):
        """Saves everything, the teacher too; a file is replaced once complete."""
        with _replacing(self, filepath, ".keras", overwrite) as path:
            return super().save(path, overwrite=overwrite, **kwargs)

    def save_weights(self, filepath, overwrite=True, **kwargs):
        """Saves student, betas and optimizer, not the teacher.

        A file is replaced only once the new one is complete.
        """
        with (
            self._without_teacher(),
            _replacing(self, filepath, ".weights.h5", overwrite) as path,
        ):
            return super().save_weights(path, overwrite=overwrite, **kwargs)

    def load_weights(self, *args, **kwargs):
        """Loads what `save_weights` saved; the teacher stays as it is."""
        with self._without_teacher():
            return super().load_weights(*args, **kwargs)

    # Keras leaves the states of random generators out of files; a resumed training
    # would repeat the dropout of its first steps.

    def _random_states(self):
        known = {id(v) for v in (*self.weights, *self.metrics_variables)}
        return [v for v in self.variables if id(v) not in known]

    def save_own_variables(self, store):
        super().save_own_variables(store)
        for i, state in enumerate(self._random_states()):
            store[f"{_RANDOM}{i}"] = keras.ops.convert_to_numpy(state)

    def load_own_variables(self, store):
        states = {k: store[k] for k in store.keys() if k.startswith(_RANDOM)}
        rest = {k: store[k] for k in store.keys() if k not in states}
        super().load_own_variables(rest)
        for i, state in enumerate(self._random_states()):
            state.assign(states[f"{_RANDOM}{i}"])

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        freeze = self.freeze if not callable(self.freeze) else serialize(self.freeze)
        length = getattr(self.preprocessor, "max_response_length", None)
        return {
            "name": self.name,
            "teacher": _model_config(self.teacher),
            "student": _model_config(self.student),
            "energies": {k: serialize(v) for k, v in self.energies.items()},
            "betas": {k: serialize(v) for k, v in self.betas.items()},
            "task_beta": self.task_beta and serialize(self.task_beta),
            "reduction": self.reduction,
            "freeze": freeze,
            "fused": self.fused,
            "vocabulary_size": self.vocabulary_size,
            "max_response_length": length,
            "blind_student": getattr(self.preprocessor, "blind_student", False),
            "cross_tokenizer": getattr(self.preprocessor, "cross_tokenizer", False),
            "on_too_long": getattr(self.preprocessor, "on_too_long", "raise"),
            "shares": _shared_parts(self.teacher, self.student),
        }

    @classmethod
    def from_config(cls, config):
        config = keras.saving.deserialize_keras_object(dict(config))
        teacher, student = config["teacher"], config["student"]
        _share_parts(teacher, student, config.pop("shares"))
        length = config.pop("max_response_length")
        options = {k: config.pop(k) for k in ("blind_student", "cross_tokenizer")}
        options["on_too_long"] = config.pop("on_too_long", "raise")
        if length is not None:
            config["preprocessor"] = DistillationPreprocessor(
                teacher.preprocessor, student.preprocessor, length, **options
            )
        config["beta"] = config.pop("betas")
        if config["fused"] is None:  # as version 0.1.0 wrote "auto"
            config["fused"] = "auto"
        return cls(**config)


def saved_bytes(model):
    """How many bytes the variables of a model and its optimizer take in a file."""
    variables = list(model.variables)
    if model.compiled:
        variables += model.optimizer.variables
    return bytes_of(variables)


def _replacing(model, filepath, ending, overwrite):
    """A path to write to that replaces a local `filepath` once the file is complete."""
    name = os.fspath(filepath)
    if not overwrite or "://" in name or not name.endswith(ending):
        return contextlib.nullcontext(filepath)
    return atomic_write(name, size=saved_bytes(model))


def _model_config(model):
    """The config of teacher or student, without that of its own `compile`."""
    config = keras.saving.serialize_keras_object(model)
    config.pop("compile_config", None)
    return config


# An object that teacher and student have in common would be loaded as two, of which
# only the first would get its vocabulary.


def _shared_parts(teacher, student):
    ours = getattr(student, "preprocessor", None)
    theirs = getattr(teacher, "preprocessor", None)
    if ours is None or theirs is None:
        return None
    if ours is theirs:
        return "preprocessor"
    return "tokenizer" if ours.tokenizer is theirs.tokenizer else None


def _share_parts(teacher, student, shared):
    if shared == "preprocessor":
        teacher.preprocessor = student.preprocessor
    elif shared == "tokenizer":
        teacher.preprocessor.tokenizer = student.preprocessor.tokenizer
