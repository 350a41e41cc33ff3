"""The files of a teacher cache: written atomically, and verified when they are read.

settings.json       what the cache depends on; written first
head.safetensors    the teacher's LM head, if hidden states are stored
00000.safetensors   records; each file holds the digest of its own content
index.json          the digests of all files; written last, so it marks a complete cache
"""

import dataclasses
import json
import pathlib
from typing import NamedTuple

import numpy as np

from keras_betakd.files import atomic_write
from keras_betakd.teacher_cache import fingerprints

FORMAT = 1


@dataclasses.dataclass
class CacheSettings:
    """The content of settings.json, by its keys; `None` for a key that is missing.

    Attributes:
        format: version of the files.
        teacher: digest of the teacher's class and weights.
        preprocessor: digest of the teacher's preprocessor.
        vocabulary: digest of the tokens of its tokenizer.
        add_end_token: whether its answers have an end mark.
        kind: what is stored for each answer token: `"hidden"`, its hidden state,
            `"top_k"`, the k best classes, or `"logits"`.
        top_k: k, the number of classes stored; `None` for all.
        arrays: sorted names of the stored arrays.
        vocabulary_size: V, the number of classes of the teacher's logits.
        hidden_dim: H, the width of the teacher's hidden states.
        head_dtype: precision in which the stored LM head computes; `None` without one.
        soft_cap: soft cap of its logits; `None` without one.
    """

    format: int | None = None
    teacher: str | None = None
    preprocessor: str | None = None
    vocabulary: str | None = None
    add_end_token: bool | None = None
    kind: str | None = None
    top_k: int | None = None
    arrays: list[str] | None = None
    vocabulary_size: int | None = None
    hidden_dim: int | None = None
    head_dtype: str | None = None
    soft_cap: float | None = None


class CachedRecord(NamedTuple):
    """A record in the metadata of a file: id, digest, number of answer tokens."""

    id: str
    digest: str
    tokens: int


class CacheFolder:
    """Reads and writes the files of a cache.

    Args:
        path: the cache's folder.

    Raises:
        ImportError: the package safetensors is missing.
    """

    def __init__(self, path):
        _safetensors()
        self.path = pathlib.Path(path)

    def settings(self):
        """The `CacheSettings`; `None` if there is no cache."""
        found = self._json("settings.json")
        if found is None:
            return None
        names = [field.name for field in dataclasses.fields(CacheSettings)]
        return CacheSettings(**{name: found.get(name) for name in names})

    def index(self):
        """Dict of file name to digest; `None` if the cache is not complete."""
        return self._json("index.json")

    def write_json(self, name, content):
        """Writes a JSON file with sorted keys."""
        text = json.dumps(content, indent=1, sort_keys=True) + "\n"
        self._write(name, text.encode())

    def write_shard(self, name, arrays, records=()):
        """Writes a safetensors file; returns its digest.

        Args:
            name: name of the file.
            arrays: dict of its arrays.
            records: the `CachedRecord`s in it.
        """
        # safetensors writes the memory of a transposed array as if it were contiguous.
        arrays = {key: np.ascontiguousarray(value) for key, value in arrays.items()}
        records = json.dumps(list(records))
        digest = fingerprints.of_arrays(arrays, records)
        # A single entry: safetensors writes several in random order, and the files of
        # two runs are to be equal, byte for byte.
        metadata = {"cache": json.dumps({"records": records, "digest": digest})}
        self._write(name, _safetensors().numpy.save(arrays, metadata))
        return digest

    def open(self, name):
        """Opens a file as a `Shard`; its arrays are not verified yet.

        Raises:
            FileNotFoundError: it does not exist.
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
        except Exception as error:  # safetensors has classes of its own
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
    """One safetensors file, whose arrays are read from disk when they are used.

    Attributes:
        records: list of the `CachedRecord`s in it.
        digest: the digest of its content, as stored in the file.
    """

    def __init__(self, path, file):
        self._path, self._file = path, file
        metadata = json.loads(file.metadata()["cache"])
        self._text, self.digest = metadata["records"], metadata["digest"]
        self.records = [CachedRecord(*r) for r in json.loads(self._text)]
        self._slices = {name: file.get_slice(name) for name in file.keys()}

    def verify(self, digest):
        """Returns the shard if its content has this digest.

        Raises:
            ValueError: it is damaged, or belongs to another cache.
        """
        if digest != self.digest:
            raise _damaged(self._path, "it belongs to another cache")
        if fingerprints.of_arrays(self.arrays(), self._text) != digest:
            raise _damaged(self._path, "its content is not what was written")
        return self

    def arrays(self):
        """Dict of all arrays, read from disk."""
        return {name: self._file.get_tensor(name) for name in self._slices}

    def rows(self, name, start, stop):
        """The rows `start` to `stop` (excluded) of an array, without reading others."""
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
