"""A teacher's stored outputs, found again by the ids of the records."""

from typing import NamedTuple

import numpy as np

from keras_betakd.preprocessing.encoding import Encoded, Encoder
from keras_betakd.preprocessing.records import as_text
from keras_betakd.teacher_cache import fingerprints
from keras_betakd.teacher_cache.files import FORMAT, CacheFolder

# What has one entry for each answer token of a record; all else has one a record.
BY_TOKEN = ("labels", "rows", "packed", "attention")


class Place(NamedTuple):
    """Where a record stands: its file, its row there, and its answer tokens' rows.

    `digest` is that of the record.
    """

    file: str
    row: int
    start: int
    stop: int
    digest: str


class CachedOutputs(Encoder):
    """Stands where a teacher's preprocessor would: gives what is stored, not tokens.

    Args:
        directory: folder of a whole cache.

    Attributes:
        settings: what the cache was made with, a `CacheSettings`.

    Raises:
        FileNotFoundError: there is no cache, or not all of it.
    """

    tokenizer = None  # gone with the teacher

    def __init__(self, directory):
        self.folder = CacheFolder(directory)
        self.settings = self.folder.settings()
        self._digests = self.folder.index()
        if self.settings is None or self._digests is None:
            state = "no" if self.settings is None else "an unfinished"
            raise FileNotFoundError(
                f"There is {state} teacher cache in '{directory}'. Run `cache_teacher` "
                "to its end first; it goes on where it was stopped."
            )
        if self.settings.format != FORMAT:
            raise ValueError(
                f"The teacher cache in '{directory}' has format "
                f"{self.settings.format}; this version reads {FORMAT}. Build it "
                "anew."
            )
        self._verified = {}
        self._places = self._find_records()

    def __len__(self):
        return len(self._places)

    def __getstate__(self):  # open files do not go to other processes
        return {**self.__dict__, "_verified": {}}

    def head(self):
        """The teacher's LM head as arrays; empty where logits themselves are stored."""
        if "head.safetensors" not in self._digests:
            return {}
        return self._open("head.safetensors").arrays()

    def check_vocabulary(self, student_preprocessor):
        tokenizer = student_preprocessor.tokenizer
        ours = fingerprints.of_vocabulary(tokenizer)
        if ours != self.settings.vocabulary:
            raise ValueError(
                f"The teacher cache in '{self.folder.path}' was made with another "
                f"vocabulary than the student's {type(tokenizer).__name__}. Teacher "
                "and student must have the same."
            )
        ends = getattr(student_preprocessor, "add_end_token", True)
        if ends != self.settings.add_end_token:
            raise ValueError(
                "Teacher and student must both end their answers, or both not. "
                f"Received: a teacher cache with add_end_token={not ends}, a student "
                f"with add_end_token={ends}"
            )

    def encode(self, records, ids, max_response_length):
        """The teacher's side of a batch, out of the cache.

        Args:
            records: dict of raw records with `"ids"`.
            ids: how to name each record in an error.
            max_response_length: K.

        Returns:
            An `Encoded`, whose inputs are float32 arrays (B, K, ...) and (B, ...).

        Raises:
            ValueError: records without ids, one that is not in the cache, or one that
                is not what it was.
        """
        found = [self._record(place) for place in self._places_of(records, ids)]
        inputs = {}
        for name in found[0]:
            rows = [record[name] for record in found]
            if name in BY_TOKEN:
                rows = [_filled_up(row, max_response_length) for row in rows]
            inputs[name] = np.stack(rows)
        labels = inputs.pop("labels")
        positions = np.arange(max_response_length, dtype="int32")
        return Encoded(inputs, labels, np.tile(positions, (len(found), 1)))

    def _places_of(self, records, ids):
        keys, digests = ids_of(records), fingerprints.of_records(records)
        places = []
        for key, digest, name in zip(keys, digests, ids, strict=True):
            if key not in self._places:
                raise ValueError(
                    f"Record {name} is not in the teacher cache '{self.folder.path}' "
                    f"of {len(self)} records. Build one of all records that are "
                    "trained or evaluated on."
                )
            place = self._places[key]
            if digest != place.digest:
                raise ValueError(
                    f"Record {name} is not what it was when its teacher ran: prompt, "
                    "response or pictures differ from those in the teacher cache "
                    f"'{self.folder.path}' (changed data, augmentation, or an id that "
                    "two records have). Build the cache of the records as they are now."
                )
            places.append(place)
        return places

    def _record(self, place):
        shard = self._open(place.file)
        found = {}
        for name in shard.names:
            if name in BY_TOKEN:
                value = shard.rows(name, place.start, place.stop)
            else:
                value = shard.rows(name, place.row, place.row + 1)[0]
            whole = name == "labels" or value.dtype == bool
            found[name] = value if whole else value.astype("float32")
        return found

    def _open(self, name):
        """A file, verified the first time that it is needed."""
        if name not in self._verified:
            shard = self.folder.open(name)
            self._verified[name] = shard.verify(self._digests[name])
        return self._verified[name]

    def _find_records(self):
        """Dict of id to `Place`."""
        places = {}
        for name in sorted(set(self._digests) - {"head.safetensors"}):
            start = 0
            for row, record in enumerate(self.folder.open(name).records):
                stop = start + record.tokens
                places[record.id] = Place(name, row, start, stop, record.digest)
                start = stop
        return places


def ids_of(records):
    """The ids of raw records, as text."""
    if records.get("ids") is None:
        raise ValueError(
            "A teacher cache finds records by their ids, and these have none. Give "
            f'each record its own in "ids". Received: keys={sorted(records)}'
        )
    return [as_text(i) for i in records["ids"]]


def _filled_up(rows, size):
    """(n, ...) followed by zeros up to `size`."""
    if len(rows) > size:
        raise ValueError(
            f"An answer in the teacher cache has {len(rows)} tokens, more than "
            f"max_response_length={size}. Raise `max_response_length`."
        )
    result = np.zeros((size, *rows.shape[1:]), rows.dtype)
    result[: len(rows)] = rows
    return result
