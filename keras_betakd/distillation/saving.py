"""`DistillerSaving`: saves student and betas always, the teacher in archives only.

Weights files hold what training changes: student, betas, energy state, optimizer.
The teacher, frozen and several times as large, is passed again before loading. The
complete archive of `save("x.keras")` holds it too.
"""

import contextlib
import functools
import os

import keras

from keras_betakd.backends import random_state, set_random_state
from keras_betakd.distillation.freezing import given_back
from keras_betakd.distillation.lora_state import unmerged
from keras_betakd.distillation.model_state import (
    apply_description,
    copy_shared_layers,
    described,
    shared_layers,
)
from keras_betakd.distillation.settings_record import settings_of, warn_of_changes
from keras_betakd.distillation.summary import bytes_of
from keras_betakd.distillation.teacher_group import members_of
from keras_betakd.distillation.teacher_parts import own_name
from keras_betakd.distillation.unregistered import warn_of_unregistered
from keras_betakd.distillation.weights_files import (
    ARCHIVE,
    WEIGHTS,
    is_local,
    lists_layers,
    load_weights,
    names_in,
    write_weights,
)
from keras_betakd.files import atomic_write
from keras_betakd.preprocessing.preprocessor import DistillationPreprocessor
from keras_betakd.preprocessing.prompt_templates import serialized_template
from keras_betakd.preprocessing.teacher_sides import ONE_TEACHER

_RANDOM = "random_state_"
_BACKEND_RANDOM = "backend_random_state_"
_SETTINGS = "settings"


class Untracked:
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
    _hides_layers = False

    @property
    def teacher(self):
        if self._hides_teacher:
            # Not an AttributeError: PyTorch would then look among its modules.
            raise RuntimeError("The teacher is not part of weights files.")
        return self._teacher_holder.model

    @teacher.setter
    def teacher(self, value):
        # Keras tracks the value before this runs, so its variables are known to the
        # JAX trainer; held untracked, it can be left out of weights files. On PyTorch
        # the constructor does it: there, modules keep models past this setter.
        self._teacher_holder = Untracked(value)

    @property
    def layers(self):
        if self._hides_layers:
            raise RuntimeError("Weights files find layers by their attributes.")
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
    def _in_weights_file(self, lists_layers=False):
        """Within, Keras' saving sees what weights files hold, where they hold it."""
        self._hides_teacher, self._hides_layers = True, not lists_layers
        try:
            yield
        finally:
            self._hides_teacher = self._hides_layers = False

    def save(self, filepath, overwrite=True, **kwargs):
        """Saves everything, the teacher too; a file is replaced once complete.

        Functions and classes of your own are written by their names, and must be
        registered (`keras.saving.register_keras_serializable`) to be found again; a
        warning names those that are not.

        Args:
            filepath: the file, which ends in ".keras".
            overwrite: whether to replace a file without asking. Defaults to `True`.
            **kwargs: as for `keras.Model.save`.

        Raises:
            ValueError: the name does not end in ".keras": Keras' older formats could
                not be loaded again.
        """
        if not os.fspath(filepath).endswith(ARCHIVE):
            raise ValueError(
                f"The name of an archive must end in '{ARCHIVE}' (weights alone: "
                f"`save_weights`, '{WEIGHTS}'). Received: filepath='{filepath}'"
            )
        warn_of_unregistered(self)
        save = functools.partial(super().save, overwrite=overwrite, **kwargs)
        with unmerged(self.student, self.teacher):
            if not _replaces(filepath, ARCHIVE, overwrite):
                return save(filepath)
            with atomic_write(filepath, size=saved_bytes(self)) as draft:
                return save(draft)

    def save_weights(self, filepath, overwrite=True, **kwargs):
        """Saves student, betas and optimizer, not the teacher.

        A file is replaced only once the new one is complete, and ends in a digest of
        its bytes.

        Args:
            filepath: the file, which ends in ".weights.h5".
            overwrite: whether to replace a file without asking. Defaults to `True`.
            **kwargs: as for `keras.Model.save_weights`.
        """
        save = functools.partial(super().save_weights, overwrite=overwrite, **kwargs)
        with self._in_weights_file():
            if _replaces(filepath, WEIGHTS, overwrite):
                write_weights(save, filepath, saved_bytes(self), self.student)
                return
            with unmerged(self.student):
                save(filepath)

    def load_weights(self, filepath, skip_mismatch=False, **kwargs):
        """Loads what `save_weights` saved; the teacher stays as it is.

        Args:
            filepath: a file that `save_weights` or `save` wrote. Its digest, names and
                shapes are verified before a variable is changed.
            skip_mismatch, **kwargs: as for `keras.Model.load_weights`. With
                `skip_mismatch=True` names and shapes are not verified.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, or of another model, which is then as it
                was before. The message names the file.
        """
        options = {"skip_mismatch": skip_mismatch, **kwargs}
        load = functools.partial(super().load_weights, filepath, **options)
        self._load(load, filepath, verified=not skip_mismatch)

    def _load(self, load, path, verified=True, needed=()):
        """Loads a file; verified first, if it is of this machine, as a whole."""
        local = is_local(path, WEIGHTS, ARCHIVE)
        names = names_in(path) if local else []
        with (
            self._in_weights_file(lists_layers(path, names)),
            unmerged(self.student),
        ):
            if local and verified:
                load_weights(load, path, names, needed, self.student)
            else:
                load()

    # Keras leaves the states of random generators out of files; a resumed training
    # would repeat the dropout of its first steps.

    def _random_states(self):
        known = {id(v) for v in (*self.weights, *self.metrics_variables)}
        return [v for v in self.variables if id(v) not in known]

    def save_own_variables(self, store):
        super().save_own_variables(store)
        for i, state in enumerate(self._random_states()):
            store[f"{_RANDOM}{i}"] = keras.ops.convert_to_numpy(state)
        for name, state in random_state().items():
            store[f"{_BACKEND_RANDOM}{name}"] = state
        store[_SETTINGS] = settings_of(self)

    def load_own_variables(self, store):
        rest = {name: store[name] for name in store.keys()}
        states = _taken(rest, _RANDOM)
        set_random_state(_taken(rest, _BACKEND_RANDOM))
        if _SETTINGS in rest:  # version 0.1.0 did not write them
            warn_of_changes(self, rest.pop(_SETTINGS))
        super().load_own_variables(rest)
        for i, state in enumerate(self._random_states()):
            state.assign(states[str(i)])

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        freeze = self.freeze if not callable(self.freeze) else serialize(self.freeze)
        length = getattr(self.preprocessor, "max_response_length", None)
        return {
            "name": self.name,
            "teacher": _model_config(self.teacher),
            "student": _model_config(self.student),
            "energies": _serialized_energies(self.teacher_parts),
            "betas": {k: serialize(v) for k, v in self.betas.items()},
            "task_beta": self.task_beta and serialize(self.task_beta),
            "reduction": self.reduction,
            "freeze": freeze,
            "fused": self.fused,
            "vocabulary_size": self.vocabulary_size,
            "remat": self.remat,
            "max_response_length": length,
            "blind_student": getattr(self.preprocessor, "blind_student", False),
            "cross_tokenizer": getattr(self.preprocessor, "cross_tokenizer", False),
            "on_too_long": getattr(self.preprocessor, "on_too_long", "raise"),
            "prompt_template": {
                role: serialized_template(template)
                for role, template in getattr(
                    self.preprocessor, "prompt_templates", {}
                ).items()
            },
            "trained_turns": getattr(self.preprocessor, "trained_turns", "all"),
            "shares": _shared_parts(self.teacher, self.student),
            "layers": {
                "teacher": _description(self.teacher),
                "student": _description(self.student),
            },
            "shared_layers": shared_layers(self.teacher, self.student),
        }

    @classmethod
    def from_config(cls, config):
        config = keras.saving.deserialize_keras_object(dict(config))
        teacher, student = config["teacher"], config["student"]
        _share_parts(teacher, student, config.pop("shares"))
        for role, description in config.pop("layers", {}).items():
            apply_description(config[role], description)
        copy_shared_layers(teacher, student, config.pop("shared_layers", ()))
        length = config.pop("max_response_length")
        options = {k: config.pop(k) for k in ("blind_student", "cross_tokenizer")}
        options["on_too_long"] = config.pop("on_too_long", "raise")
        # Earlier versions had none.
        none = {"teacher": None, "student": None}
        options["prompt_template"] = config.pop("prompt_template", none)
        options["trained_turns"] = config.pop("trained_turns", "all")
        if length is not None:
            config["preprocessor"] = DistillationPreprocessor(
                teacher.preprocessor, student.preprocessor, length, **options
            )
        config["beta"] = config.pop("betas")
        if config["fused"] is None:  # as version 0.1.0 wrote "auto"
            config["fused"] = "auto"
        return cls(**config)


def save_state(model, path):
    """Writes the weights file of a model and its optimizer, atomically."""
    if isinstance(model, DistillerSaving):
        model.save_weights(path)
    else:
        write_weights(model.save_weights, path, saved_bytes(model), model)


def load_state(model, path):
    """Loads a weights file with all that a training needs, or nothing of it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or of another model or optimizer.
    """
    needed = model.optimizer.variables
    if isinstance(model, DistillerSaving):
        load = functools.partial(keras.Model.load_weights, model, path)
        model._load(load, path, needed=needed)
        return
    load = functools.partial(model.load_weights, path)
    with unmerged(model):
        load_weights(load, path, names_in(path), needed)


def saved_bytes(model):
    """How many bytes the variables of a model and its optimizer take in a file."""
    variables = list(model.variables)
    if model.compiled:
        variables += model.optimizer.variables
    return bytes_of(variables)


def _replaces(filepath, ending, overwrite):
    """Whether a local file is written, without a question to the user."""
    free = overwrite or not os.path.exists(filepath)
    return is_local(filepath, ending) and free


def _taken(values, prefix):
    """Takes the values whose names begin so out of a dict."""
    names = [name for name in values if name.startswith(prefix)]
    return {name.removeprefix(prefix): values.pop(name) for name in names}


def _model_config(model):
    """The config of teacher or student, without that of its own `compile`."""
    with given_back(model):
        config = keras.saving.serialize_keras_object(model)
    config.pop("compile_config", None)
    return config


def _description(model):
    """What was done to the layers of a model, but for what the distiller froze."""
    with given_back(model):
        return described(model)


# An object that teacher and student have in common would be loaded as two, of which
# only the first would get its vocabulary.


def _shared_parts(teacher, student):
    """What of its preprocessor the teacher has in common with the student.

    `"preprocessor"`, `"tokenizer"` or `None`. Of several teachers, a dict by their
    names of pairs of that and of the model it is common with, the student or a teacher
    before.
    """
    members = members_of(teacher)
    if list(members) == [ONE_TEACHER]:
        return _shared(teacher, student)
    found, before = {}, {"student": student}
    for name, member in members.items():
        pairs = [(_shared(member, other), role) for role, other in before.items()]
        # The whole preprocessor rather than its tokenizer alone.
        pairs = sorted((what, role) for what, role in pairs if what is not None)
        found[name] = pairs[0] if pairs else None
        before[name] = member
    return found


def _shared(model, other):
    ours = getattr(other, "preprocessor", None)
    theirs = getattr(model, "preprocessor", None)
    if ours is None or theirs is None:
        return None
    if ours is theirs:
        return "preprocessor"
    is_one = getattr(ours, "tokenizer", 0) is getattr(theirs, "tokenizer", 1)
    return "tokenizer" if is_one else None


def _share_parts(teacher, student, shared):
    members = members_of(teacher)
    if list(members) == [ONE_TEACHER]:
        shared = {ONE_TEACHER: shared and (shared, "student")}
    models = {**members, "student": student}
    for name, pair in shared.items():
        what, role = pair or (None, "student")
        if what == "preprocessor":
            models[name].preprocessor = models[role].preprocessor
        elif what == "tokenizer":
            tokenizer = models[role].preprocessor.tokenizer
            models[name].preprocessor.tokenizer = tokenizer


def _serialized_energies(parts):
    """The configs of the energies, of several teachers by their names."""
    serialize = keras.saving.serialize_keras_object
    found = {
        part.name: {
            own_name(part.name, name): serialize(energy)
            for name, energy in part.energies.items()
        }
        for part in parts
    }
    return found.get(ONE_TEACHER, found)
