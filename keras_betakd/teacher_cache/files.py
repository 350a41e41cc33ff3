"""The files of a teacher cache: written atomically, and verified when they are read.

settings.json       what the cache depends on; written first
head.safetensors    the teacher's LM head, if hidden states are stored
00000.safetensors   records; each file names the settings it was made with
index.json          the digests of all files; written last, so it marks a complete cache

Each file holds the digest of its own content, and index.json those of all others, so
that nothing that was changed later is ever read.
"""

import dataclasses
import json
import pathlib
import re
import types
from typing import NamedTuple, get_args

import numpy as np

from keras_betakd import fingerprints
from keras_betakd.files import atomic_write, open_text
from keras_betakd.folders import FolderOwner, inside

FORMAT = 2
HEAD = "head.safetensors"
_NAME = re.compile(r"head\.safetensors|\d{5,}\.safetensors")


@dataclasses.dataclass
class CacheSettings:
    """The content of settings.json, by its keys.

    Attributes:
        format: version of the files.
        versions: those of the packages and of the backend that computed the outputs.
        teacher: digest of the teacher's weights.
        teacher_settings: digest of its layers, their constants and precisions.
        preprocessor: digest of the teacher's preprocessor, and the label of the prompt
            template, if there is one (`with_template`).
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

    format: int
    versions: dict
    teacher: str
    teacher_settings: str
    preprocessor: str
    vocabulary: str
    add_end_token: bool
    kind: str
    top_k: int | None
    arrays: list
    vocabulary_size: int
    hidden_dim: int
    head_dtype: str | None
    soft_cap: float | None

    @property
    def digest(self):
        return fingerprints.of_value(dataclasses.asdict(self))

    @property
    def prompt_template(self):
        """The label of the prompt template; `None` for prompts as they are."""
        return self.preprocessor.partition(_TEMPLATE)[2] or None


# Between the two parts of `CacheSettings.preprocessor`.
_TEMPLATE = ", prompt template "


def with_template(digest, label):
    """The digest of a preprocessor with the label of a prompt template, or `None`.

    Caches of prompts as they are have the settings that they had before.
    """
    return digest if label is None else f"{digest}{_TEMPLATE}{label}"


class CachedRecord(NamedTuple):
    """A record in the metadata of a file: id, digest, number of answer tokens."""

    id: str
    digest: str
    tokens: int


class CacheFolder:
    """Reads and writes the files of a cache.

    Args:
        path: the cache's folder.
        owner: the `FolderOwner` of the folder, to write in it.

    Raises:
        ImportError: the package safetensors is missing.
    """

    def __init__(self, path, owner: FolderOwner | None = None):
        _safetensors()
        self.path = pathlib.Path(path)
        self._owner = owner

    def settings(self):
        """The `CacheSettings`; `None` if there is no cache.

        Raises:
            ValueError: the file is damaged or was changed, or has another format.
        """
        found = self._json("settings.json")
        if found is None:
            return None
        if isinstance(found, dict) and found.get("format") != FORMAT:
            raise ValueError(
                f"The settings.json of the teacher cache in '{self.path}' has format "
                f"{found.get('format')!r}; this version reads {FORMAT}, whose files "
                "show any change. Build it anew, in another directory or after "
                "deleting that one."
            )
        return CacheSettings(**_verified(self.path / "settings.json", found))

    def write_settings(self, settings):
        self._write_json("settings.json", dataclasses.asdict(settings))

    def index(self):
        """Dict of file name to digest; `None` if the cache is not complete.

        Raises:
            ValueError: the file is damaged or was changed.
        """
        found = self._json("index.json")
        if found is None:
            return None
        path = self.path / "index.json"
        files = _verified(path, found, _Index)["files"]
        for name, digest in files.items():
            if name != "settings.json" and not _NAME.fullmatch(name):
                raise _damaged(path, f"it names the file {name!r}")
            if not _is(digest, str):
                raise _damaged(path, f"the digest of {name!r} is {digest!r}")
        return files

    def write_index(self, digests):
        """Writes the digests of all other files: the cache is complete."""
        self._write_json("index.json", {"files": digests})

    def write_shard(self, name, arrays, settings_digest, records=()):
        """Writes a safetensors file; returns its digest.

        Args:
            name: name of the file.
            arrays: dict of its arrays.
            settings_digest: that of the settings which it was made with.
            records: the `CachedRecord`s in it.
        """
        # safetensors writes the memory of a transposed array as if it were contiguous.
        arrays = {key: np.ascontiguousarray(value) for key, value in arrays.items()}
        text = json.dumps({"settings": settings_digest, "records": list(records)})
        found = {"text": text, "arrays": fingerprints.of_arrays(arrays, "")}
        found["digest"] = fingerprints.of_value([found["arrays"], text])
        # A single entry: safetensors writes several in random order, and the files of
        # two runs are to be equal, byte for byte.
        metadata = {"cache": json.dumps(found)}
        self._write(name, _safetensors().numpy.save(arrays, metadata))
        return found["digest"]

    def exists(self, name):
        return (self.path / name).exists()

    def open(self, name):
        """Opens a file as a `Shard`; its arrays are not verified yet.

        Raises:
            FileNotFoundError: it does not exist.
            ValueError: it is damaged, or its name leads out of the folder.
        """
        path = inside(self.path, name)
        if not path.exists():
            raise FileNotFoundError(
                f"The teacher cache '{self.path}' has lost its file '{name}'. Run "
                "`cache_teacher` again: it makes what is missing."
            )
        return _reading(path, lambda: Shard(path))

    def _json(self, name):
        path = inside(self.path, name)
        if not path.exists():
            return None
        if not path.is_file():
            raise _damaged(path, "it is no regular file")
        try:
            with open_text(path, newline="") as file:
                text = file.read()
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _damaged(path, str(error)) from error
        if isinstance(found, dict) and "digest" in found and _as_text(found) != text:
            raise _damaged(path, "it was changed after it was written")
        return found

    def _write_json(self, name, content):
        content = {**content, "digest": fingerprints.of_value(content)}
        self._write(name, _as_text(content).encode())

    def _write(self, name, data):
        advice = (
            "Make room, or the folder writable, and call `cache_teacher` again to go "
            "on from what it wrote before."
        )
        self._owner.expect()
        with atomic_write(self.path / name, advice) as draft:
            draft.write_bytes(data)


@dataclasses.dataclass
class _Index:
    """The content of index.json."""

    files: dict


def _verified(path, found, kind=CacheSettings):
    """The content of a JSON file without its digest, which must be right.

    Args:
        path: the file.
        found: its value.
        kind: the dataclass of its content.
    """
    if not isinstance(found, dict):
        raise _damaged(path, f"it holds {type(found).__name__}, not an object")
    content = {k: v for k, v in found.items() if k != "digest"}
    if found.get("digest") != fingerprints.of_value(content):
        raise _damaged(path, "its content is not what was written")
    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    if set(content) != set(fields):
        raise _damaged(path, f"it has the keys {sorted(content)}")
    for name, value in content.items():
        if not _is(value, fields[name]):
            raise _damaged(path, f"its {name!r} is {value!r}")
    return content


def _as_text(content):
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def _is(value, kind):
    """Whether a value of JSON is of a type; `bool` is no `int`."""
    kinds = get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    kinds = (*kinds, int) if float in kinds else kinds
    return type(value) in kinds


class Shard:
    """One safetensors file, whose arrays are read from disk when they are used.

    Attributes:
        records: list of the `CachedRecord`s in it.
        settings: the digest of the settings that it was made with.
        digest: the digest of its content, as stored in the file.
    """

    def __init__(self, path):
        self._path = path
        if not path.is_file():
            raise ValueError("it is no regular file")
        self._file = _safetensors().safe_open(path, framework="numpy")
        metadata = json.loads(self._file.metadata()["cache"])
        text, self.digest = metadata["text"], metadata["digest"]
        self._arrays_digest = metadata["arrays"]
        if self.digest != fingerprints.of_value([self._arrays_digest, text]):
            raise ValueError("its records are not what was written")
        content = json.loads(text)
        self.settings = content["settings"]
        self.records = [CachedRecord(*r) for r in content["records"]]
        self._slices = {name: self._file.get_slice(name) for name in self._file.keys()}

    def expect(self, digest):
        """Raises a `ValueError` if the file is not the one with this digest.

        Its arrays are not read; see `verify`.
        """
        if digest != self.digest:
            raise _damaged(self._path, "it belongs to another cache")

    def expect_settings(self, digest):
        """Raises a `ValueError` if it was made with settings of another digest."""
        if digest != self.settings:
            raise _damaged(self._path, "it belongs to another cache")

    def verify(self, digest):
        """Returns the shard if its content has this digest.

        Raises:
            ValueError: it is damaged, or belongs to another cache.
        """
        self.expect(digest)
        arrays = _reading(self._path, self.arrays)
        if fingerprints.of_arrays(arrays, "") != self._arrays_digest:
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


def _reading(path, read):
    """What `read` returns; its errors are those of a damaged file."""
    try:
        return read()
    except Exception as error:  # safetensors has classes of its own
        raise _damaged(path, f"{type(error).__name__}: {error}") from error


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
