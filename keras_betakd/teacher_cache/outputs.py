"""`CachedOutputs`: a teacher's stored outputs, found by the ids of the records."""

from typing import NamedTuple

import numpy as np

from keras_betakd import fingerprints
from keras_betakd.models.attention import kind_and_blocks
from keras_betakd.preprocessing.chat_templates import chat_template
from keras_betakd.preprocessing.encoding import Encoded, Encoder
from keras_betakd.preprocessing.prompt_templates import LAST_TURN, template_label
from keras_betakd.preprocessing.records import id_texts
from keras_betakd.teacher_cache.files import HEAD, CacheFolder


def is_by_token(name):
    """Whether a stored array has an entry for each answer token, not each record."""
    kind = kind_and_blocks(name)[0]
    return kind in ("labels", "rows", "packed", "attention")


class Place(NamedTuple):
    """Where a record is stored.

    Attributes:
        file: the name of its file.
        row: its number in the file.
        start, stop: the range of its answer tokens among those of the file.
        digest: the digest of the record.
    """

    file: str
    row: int
    start: int
    stop: int
    digest: str


class CachedOutputs(Encoder):
    """The preprocessor of a cached teacher: encodes records as its stored outputs.

    Args:
        directory: folder of a complete cache.

    Attributes:
        settings: the `CacheSettings`.

    Raises:
        FileNotFoundError: there is no cache, or it is not complete.
        ValueError: the cache has another format, or a file is damaged or was changed.
    """

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
        if self._digests.pop("settings.json", None) != self.settings.digest:
            raise ValueError(
                f"The file 'settings.json' of the teacher cache '{directory}' belongs "
                "to another cache than its index.json. Call `cache_teacher` again, "
                "with the teacher that this cache is to be of."
            )
        self._verified = {}
        self._places = self._find_records()

    def __len__(self):
        return len(self._places)

    def __getstate__(self):  # open files cannot be sent to other processes
        return {**self.__dict__, "_verified": {}}

    def head(self):
        """The arrays of the teacher's LM head; empty if no hidden states are stored."""
        return self._open(HEAD).arrays() if HEAD in self._digests else {}

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

    def expect_template(self, prompt_template):
        if isinstance(prompt_template, str) and prompt_template == "auto":
            return  # the labels are compared in any case
        if isinstance(prompt_template, str):
            prompt_template = chat_template(prompt_template)
        wanted, made = template_label(prompt_template), self.settings.prompt_template
        if wanted != (made and made.removesuffix(LAST_TURN)):
            raise ValueError(
                f"The teacher cache in '{self.folder.path}' was made with another "
                f"prompt template. Received: prompt_template={wanted!r}, there: "
                f"{made!r}. Build it with this one, in another directory."
            )

    def encode(self, records, ids, max_response_length):
        """The teacher's side of a batch, read from the cache.

        Args:
            records: dict of raw records with `"ids"`.
            ids: B strings that name the records in errors.
            max_response_length: K, the maximum number of answer tokens of a record.

        Returns:
            An `Encoded` without weights. Its inputs are the stored arrays, (B, K, ...)
            or (B, ...), in float32 (bool for masks).

        Raises:
            ValueError: records without ids, a record that is not in the cache or has
                changed since, or an answer of more than K tokens.
        """
        found = [self._record(place) for place in self._places_of(records, ids)]
        inputs = {}
        for name in found[0]:
            rows = [record[name] for record in found]
            if is_by_token(name):
                rows = [_padded(row, max_response_length) for row in rows]
            inputs[name] = np.stack(rows)
        labels = inputs.pop("labels")
        positions = np.arange(max_response_length, dtype="int32")
        return Encoded(inputs, labels, np.tile(positions, (len(found), 1)))

    def _places_of(self, records, ids):
        """The `Place` of each record, which must be unchanged."""
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
                    "response or images differ from those in the teacher cache "
                    f"'{self.folder.path}' (changed data, augmentation, or an id that "
                    "two records have). Build the cache of the records as they are now."
                )
            places.append(place)
        return places

    def _record(self, place):
        """Dict of the stored arrays of one record."""
        shard = self._open(place.file)
        found = {}
        for name in shard.names:
            if is_by_token(name):
                value = shard.rows(name, place.start, place.stop)
            else:
                value = shard.rows(name, place.row, place.row + 1)[0]
            is_float = name != "labels" and value.dtype != bool
            found[name] = value.astype("float32") if is_float else value
        return found

    def _open(self, name):
        """A file, verified when it is opened for the first time."""
        if name not in self._verified:
            shard = self.folder.open(name)
            self._verified[name] = shard.verify(self._digests[name])
        return self._verified[name]

    def _find_records(self):
        """Dict of the id of each record to its `Place`."""
        places = {}
        for name in sorted(set(self._digests) - {HEAD}):
            start, shard = 0, self.folder.open(name)
            shard.expect(self._digests[name])
            for row, record in enumerate(shard.records):
                stop = start + record.tokens
                places[record.id] = Place(name, row, start, stop, record.digest)
                start = stop
        return places


def ids_of(records):
    """The ids of raw records as strings; raises a `ValueError` if there are none."""
    if records.get("ids") is None:
        raise ValueError(
            "A teacher cache finds records by their ids, and these have none. Give "
            f'each record its own in "ids". Received: keys={sorted(records)}'
        )
    return id_texts(records["ids"])


def _padded(rows, size):
    """Rows (n, ...) padded with zeros to (size, ...)."""
    if len(rows) > size:
        raise ValueError(
            f"An answer in the teacher cache has {len(rows)} tokens, more than "
            f"max_response_length={size}. Raise `max_response_length`."
        )
    result = np.zeros((size, *rows.shape[1:]), rows.dtype)
    result[: len(rows)] = rows
    return result
