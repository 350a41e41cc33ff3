"""The files of a cache: written whole or not at all, and verified when they are read.

settings.json       what the cache depends on; written first
head.safetensors    the teacher's LM head, where rows of hidden states are stored
00000.safetensors   records; each file carries the digest of its own content
index.json          the digests of all files; written last, so it marks a whole cache
"""

import json
import pathlib

import numpy as np

from keras_betakd.files import atomic_write
from keras_betakd.teacher_cache import fingerprints

FORMAT = 1


class CacheFolder:
    """The folder of a cache.

    Args:
        path: the folder.

    Raises:
        ImportError: the package safetensors is missing.
    """

    def __init__(self, path):
        _safetensors()
        self.path = pathlib.Path(path)

    def settings(self):
        """What the cache was made with, a dict; `None` if there is no cache."""
        return self._json("settings.json")

    def index(self):
        """Dict of file name to digest; `None` if the cache is not whole."""
        return self._json("index.json")

    def write_json(self, name, content):
        text = json.dumps(content, indent=1, sort_keys=True) + "\n"
        self._write(name, text.encode())

    def write_shard(self, name, arrays, records=()):
        """Writes a file; returns its digest.

        Args:
            name: its name.
            arrays: dict of its arrays.
            records: of each record in it, `[id, digest, tokens]`.
        """
        # The library writes a transposed array as if it were not.
        arrays = {key: np.ascontiguousarray(value) for key, value in arrays.items()}
        records = json.dumps(list(records))
        digest = fingerprints.of_arrays(arrays, records)
        # One entry: it writes several in any order, and files are equal to the bit.
        metadata = {"cache": json.dumps({"records": records, "digest": digest})}
        self._write(name, _safetensors().numpy.save(arrays, metadata))
        return digest

    def open(self, name):
        """A file as a `Shard`, its arrays not verified yet.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: it is damaged.
        """
        path = self.path / name
        if not path.exists():
            raise FileNotFoundError(
                f"The teacher cache '{self.path}' has lost its file '{name}'. Run "
                "`cache_teacher` again: it makes what is missing."
            )
        try:
            return Shard(path, _safetensors().safe_open(path, framework="numpy"))
        except Exception as error:  # the library has kinds of its own
            raise _damaged(path, f"{type(error).__name__}: {error}") from error

    def _json(self, name):
        path = self.path / name
        if not path.exists():
            return None
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise _damaged(path, str(error)) from error

    def _write(self, name, data):
        advice = (
            "Make room, or the folder writable, and call `cache_teacher` again to go "
            "on from what it wrote before."
        )
        with atomic_write(self.path / name, advice) as draft:
            draft.write_bytes(data)


class Shard:
    """One file, read from disk as its arrays are asked for.

    Attributes:
        records: of each record in it, `[id, digest, tokens]`.
        digest: of all its content, as it says itself.
    """

    def __init__(self, path, file):
        self._path, self._file = path, file
        metadata = json.loads(file.metadata()["cache"])
        self._text, self.digest = metadata["records"], metadata["digest"]
        self.records = json.loads(self._text)
        self._slices = {name: file.get_slice(name) for name in file.keys()}

    def verify(self, digest):
        """Itself, if what it holds has this digest.

        Raises:
            ValueError: it is damaged, or belongs to another cache.
        """
        if digest != self.digest:
            raise _damaged(self._path, "it belongs to another cache")
        if fingerprints.of_arrays(self.arrays(), self._text) != digest:
            raise _damaged(self._path, "its content is not what was written")
        return self

    def arrays(self):
        return {name: self._file.get_tensor(name) for name in self._slices}

    def rows(self, name, start, stop):
        return np.asarray(self._slices[name][start:stop])

    @property
    def names(self):
        return set(self._slices)


def _safetensors():
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "A teacher cache is kept in safetensors files: `pip install "
            "keras-betakd[cache]`."
        ) from error
    return safetensors


def _damaged(path, reason):
    return ValueError(
        f"The file '{path}' of the teacher cache is damaged: {reason}. Delete it and "
        "call `cache_teacher` again: it makes what is missing."
    )
