"""Weights files that are verified as a whole before a variable is changed.

A weights file ends in a digest of all bytes before it. HDF5 allows for bytes behind its
own, so Keras alone reads such a file too. Files without a digest, which older versions
and Keras write, are read as well; their names and shapes are compared all the same.
"""

import contextlib
import hashlib
import os
import pathlib
import re
import threading
import warnings
import zipfile

import keras

from keras_betakd.backends import random_state, set_random_state
from keras_betakd.distillation.lora_state import unmerged
from keras_betakd.files import atomic_write

WEIGHTS = ".weights.h5"
ARCHIVE = ".keras"
_MARK = b"\nkeras_betakd sha256 "
_END = re.compile(re.escape(_MARK) + rb"([0-9a-f]{64})\n")
END_SIZE = len(_MARK) + 65
STUDENT = "student"
_BLOCK = 2**20


def is_local(path, *endings):
    """Whether a path is one of this machine with one of the endings."""
    name = os.fspath(path)
    return "://" not in name and name.endswith(endings)


def append_digest(path):
    """Appends the digest of a complete weights file to it."""
    digest = _digest(path, os.path.getsize(path))
    with open(path, "ab") as file:
        file.write(_MARK + digest.encode() + b"\n")


def _digest(path, size):
    """The SHA-256 of the first `size` bytes of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(min(_BLOCK, size)):
            digest.update(block)
            size -= len(block)
    return digest.hexdigest()


def write_weights(save, path, size, *models):
    """Writes a weights file atomically, with its digest.

    Args:
        save: function that writes the file to a path.
        path: the file.
        size: how many bytes it may take.
        *models: those in it, whose LoRA factors stay apart.
    """
    with unmerged(*models), atomic_write(path, size=size) as draft:
        save(draft)
        append_digest(draft)


class DamagedFileError(ValueError):
    """A file does not hold the bytes that were written."""


def names_in(path):
    """The names of the numbers in a weights file; none for an archive.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFileError: the file is damaged. The message names the newest one beside
            it that is whole.
        ValueError: the file has a link to another file.
    """
    with _naming(path):
        return _names_in(os.fspath(path))


def load_weights(load, path, names, needed=(), student=None):
    """Loads a weights file, or raises an error and leaves the model as it was.

    Args:
        load: function without arguments that loads it.
        path: the file.
        names: what `names_in` returned for it.
        needed: variables that must be in it.
        student: the student that is in it, if it is a distiller's file.

    Raises:
        ValueError: the file is of another model. The message names it.
    """
    check_weights(load, path, names, needed, student)
    load()


def check_weights(load, path, names, needed=(), student=None):
    """Raises what `load_weights` raises, and loads nothing."""
    with _naming(path):
        with rehearsed() as assigned:
            load()
        _expect_needed(needed, assigned)
        if student is not None:
            _expect_all_read(names, student, assigned)


@contextlib.contextmanager
def _naming(path):
    """Within, all that a damaged or a wrong file leads to is one error that names it.

    Keras, HDF5 and zip raise errors of many kinds.
    """
    try:
        yield
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:
        # Keras lists all layers behind its example, with the numbers in them.
        reason = str(error).partition("\n\nList of objects that could not be loaded")[0]
        kind = DamagedFileError if isinstance(error, DamagedFileError) else ValueError
        raise kind(
            f"'{os.fspath(path)}' cannot be loaded, and nothing of it was: {reason}"
        ) from error


def _names_in(name):
    if os.path.isdir(name):
        raise ValueError("It is a folder.")
    if name.endswith(ARCHIVE):
        with zipfile.ZipFile(name) as archive:
            damaged = archive.testzip()
        if damaged:
            raise DamagedFileError(
                f"The file is damaged: the checksum of {damaged} differs."
            )
        return []
    try:
        _expect_whole(name)
    except DamagedFileError as error:
        beside = _newest_whole_beside(name)
        advice = f"'{beside}' is whole." if beside else "Use an older file, or a copy."
        raise DamagedFileError(f"{error} {advice}") from error
    return _datasets(name)


def _expect_whole(name):
    """Raises a `DamagedFileError` for a file that is not as it was written.

    Returns:
        Whether it has a digest, which alone proves it.
    """
    size = os.path.getsize(name)
    with open(name, "rb") as file:
        file.seek(max(0, size - END_SIZE))
        end = _END.fullmatch(file.read())
    behind = size - _hdf5_size(name)
    if behind != (END_SIZE if end else 0) or (
        end and _digest(name, size - END_SIZE).encode() != end[1]
    ):
        raise DamagedFileError(
            "The file is damaged: its bytes are not those that were written."
        )
    return end is not None


def is_whole(path):
    """Whether the digest of a weights file is that of its bytes.

    Args:
        path: the file, all of which is read.
    """
    try:
        return _expect_whole(os.fspath(path))
    except (OSError, ValueError):
        return False


def _newest_whole_beside(name):
    """The path of the newest other weights file of a folder that is whole, or `None`.

    A folder may hold many gigabytes, so that the first one that is whole ends it.
    """
    own = pathlib.Path(name)
    others = [
        p for p in own.parent.glob(f"*{WEIGHTS}") if p.name[0] != "." and p != own
    ]
    with contextlib.suppress(OSError):  # a run may remove its files meanwhile
        others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        return next(filter(is_whole, others), None)
    return None


def _hdf5_size(path):
    """The size of an HDF5 file by its first bytes; what follows is not of HDF5.

    Raises:
        DamagedFileError: it is none.
        ValueError: it is of a version that is not known.
    """
    with open(path, "rb") as file:
        start = file.read(60)
    if len(start) < 60 or not start.startswith(b"\x89HDF\r\n\x1a\n"):
        raise DamagedFileError("It is no HDF5 file.")
    # Where the address of the end stands, by the version of the superblock.
    place = {0: 40, 1: 44, 2: 28, 3: 28}.get(start[8])
    if place is None:
        raise ValueError(f"Its version of HDF5 is not known: {start[8]}.")
    return int.from_bytes(start[place : place + 8], "little")


def _datasets(path):
    """The names of the datasets of an HDF5 file that leads to no other file."""
    import h5py

    names, links = [], []

    def visit(name, link):
        if isinstance(link, (h5py.ExternalLink, h5py.SoftLink)):
            links.append(name)

    def collect(name, item):
        if isinstance(item, h5py.Dataset):
            (links if item.external or item.is_virtual else names).append(name)

    with h5py.File(path) as file:
        file.visititems_links(visit)
        if not links:
            file.visititems(collect)
    if links:
        raise ValueError(
            f"The file has links to other places ({links[:3]}), which are not followed."
        )
    return names


class _Noted(keras.StatelessScope):
    """Within, `Variable.assign` checks shapes, notes the variable and changes none."""

    def __init__(self):
        super().__init__()
        self.assigned = set()

    def add_update(self, update):
        self.assigned.add(id(update[0]))


@contextlib.contextmanager
def rehearsed():
    """Within, loading raises what it would raise, and changes nothing.

    Yields:
        The set of `id` of the variables that would change.
    """
    scope, thread, state = _Noted(), threading.get_ident(), random_state()
    inherited, assign = "assign" not in vars(keras.Variable), keras.Variable.assign

    def rehearse(variable, value):
        if threading.get_ident() != thread:  # one that reads data, say
            return assign(variable, value)
        with scope:  # here alone: while it walks, Keras makes variables of its own
            return assign(variable, value)

    keras.Variable.assign = rehearse
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the same ones follow with the loading
            yield scope.assigned
    finally:
        if inherited:
            del keras.Variable.assign
        else:
            keras.Variable.assign = assign
        set_random_state(state)


def _expect_needed(variables, assigned):
    missing = [v.path for v in variables if id(v) not in assigned]
    if missing:
        raise ValueError(
            f"It lacks {len(missing)} variables of the optimizer, such as "
            f"{missing[:3]}. The model must train the same variables with the same "
            "optimizer as when the file was written."
        )


def _expect_all_read(names, student, assigned):
    prefix = f"{STUDENT}/"
    saved = [n.removeprefix(prefix) for n in names if n.startswith(prefix)]
    # Not the state of the student's own `compile`, nor what LoRA adds.
    saved = [n for n in saved if not n.startswith(("_", "optimizer/"))]
    saved = [n for n in saved if not n.rpartition("/")[2].startswith("lora_")]
    read = assigned & {id(v) for v in student.variables}
    if len(saved) > len(read):
        raise ValueError(
            f"It holds a larger student: {len(saved)} variables, of which this one has "
            f"{len(read)}."
        )


def lists_layers(path, names):
    """Whether the student stands in the list of the distiller's layers in a file.

    So it does in archives, and in weights files that version 0.1.0 wrote on JAX and on
    TensorFlow.

    Args:
        path: the file.
        names: what `names_in` returned for it.
    """
    if is_local(path, ARCHIVE):
        return True
    return bool(names) and not any(n.startswith(f"{STUDENT}/") for n in names)
