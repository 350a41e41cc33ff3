"""The files of a cache: written whole or not at all, and verified when they are read.

settings.json       what the cache depends on; written first
head.safetensors    the teacher's LM head, where rows of hidden states are stored
00000.safetensors   records; each file carries the digest of its own content
index.json          the digests of all files; written last, so it marks a whole cache
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
    """The content of settings.json: what a cache was made with, under the file's keys.

    A key that the file lacks is `None`.

    Attributes:
        format: version of the files.
        teacher: digest of the teacher's weights.
        preprocessor: digest of its preprocessor.
        vocabulary: digest of its tokens.
        add_end_token: whether its answers have an end mark.
        kind: what is stored of each answer token: `"hidden"` states, `"top_k"`
            classes or all `"logits"`.
        top_k: how many classes; `None` for all.
        arrays: the names of the stored arrays, sorted.
        vocabulary_size: V, the number of classes.
        hidden_dim: H, the width of its hidden states.
        head_dtype: the precision in which its LM head computes; `None` without a head.
        soft_cap: of its logits; `None` if there is none.
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
    """A record in the metadata of a file: its id, its digest, its answer tokens."""

    id: str
    digest: str
    tokens: int


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
        """The `CacheSettings`; `None` if there is no cache."""
        found = self._json("settings.json")
        if found is None:
            return None
        names = [field.name for field in dataclasses.fields(CacheSettings)]
        return CacheSettings(**{name: found.get(name) for name in names})

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
            records: the `CachedRecord`s in it.
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
        records: list of the `CachedRecord`s in it.
        digest: of all its content, as it says itself.
    """

    def __init__(self, path, file):
        self._path, self._file = path, file
        metadata = json.loads(file.metadata()["cache"])
        self._text, self.digest = metadata["records"], metadata["digest"]
        self.records = [CachedRecord(*r) for r in json.loads(self._text)]
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
