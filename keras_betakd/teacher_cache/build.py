"""`cache_teacher`: runs a teacher once over a data set and stores its outputs."""

import dataclasses
import os
from typing import Any

import keras
import numpy as np

from keras_betakd import fingerprints
from keras_betakd.folders import FolderOwner
from keras_betakd.preprocessing.adapters import as_dataset
from keras_betakd.preprocessing.iterables import begin, has_batch, is_endless
from keras_betakd.preprocessing.prompt_templates import PromptTemplate
from keras_betakd.preprocessing.record_checks import checked_records
from keras_betakd.teacher_cache.files import HEAD, CachedRecord, CacheFolder
from keras_betakd.teacher_cache.finite import FiniteTokens, expect_finite_head
from keras_betakd.teacher_cache.outputs import ids_of
from keras_betakd.teacher_cache.source import TeacherSource, compacted
from keras_betakd.teacher_cache.teacher import CachedTeacher

# A file is closed when it has this many records or bytes.
FILE_RECORDS = 512
FILE_BYTES = 2**28


def cache_teacher(
    distiller_or_teacher: keras.Model,
    dataset: Any,
    directory: str | os.PathLike,
    top_k: int | None = None,
    batch_size: int = 32,
    max_response_length: int = 64,
    verbose: int = 1,
    prompt_template: PromptTemplate = "auto",
) -> CachedTeacher:
    """Runs a teacher once over a data set and writes its outputs to disk.

    By default the last hidden state of each answer token is stored, and once the
    teacher's LM head, which computes the logits from it. This takes H numbers per token
    (the hidden width) instead of V (the number of classes), and the losses are those of
    the live teacher. Where the head has no matrix that could be stored, as in a
    quantized teacher, the logits are stored instead.

    With `top_k`, the log-probabilities log p_i of the k best classes and the remaining
    probability r are stored; the other V - k classes share r equally:

        log p_i  for i among the k best,   log(r / (V - k))  for every other i.

    This needs no head, but changes the values of the energies (by how much:
    `benchmarks/teacher_cache.py`).

    In all cases what betas and energies read of each record is stored too: the mean
    hidden state, and, for a distiller whose energies compare features, those features.

    A run that was interrupted continues where it stopped when it is called again, and
    ends with the same files, byte for byte. It goes on only with the same teacher
    (weights, constants such as the wavelength of its rotary embedding, precision, LoRA,
    quantization), preprocessor, prompt template, settings, and versions of this
    package, Keras, keras-hub and the backend. One process at a time may build a cache
    in a folder; any number may read it once it is complete.

    Args:
        distiller_or_teacher: a `BetaKDDistiller`, whose energies and betas determine
            what is stored, or a teacher, a keras-hub `CausalLM`.
        dataset: raw records with ids, {"ids", "prompts", "responses", "images"}, as a
            dict of lists or in batches (`PyDataset`, `tf.data.Dataset`, torch
            `DataLoader`), in the same order each time.
        directory: folder to write to.
        top_k: k, the number of classes to store; `None` (default) stores all. A beta
            that reads the teacher's uncertainty then reads that of what is stored.
        batch_size: records per batch, for a dict of lists.
        max_response_length: the maximum number of answer tokens of a record, for a
            teacher; a distiller's preprocessor has its own.
        verbose: 1 for a progress bar, 0 for none.
        prompt_template: the template that a teacher's prompts are written in, as for
            `DistillationPreprocessor`; a distiller has its own.

    Returns:
        A `CachedTeacher`, which takes the teacher's place in a distiller.

    Raises:
        ValueError: no records, records without ids, or two with the same id; a cache in
            `directory` that was made with another teacher, preprocessor, setting or
            version, or of other records; a damaged file; a teacher whose outputs are
            all NaN or infinite (where only some are, a `RuntimeWarning` counts them).
        FolderInUseError: another process is building a cache in `directory`.
        OSError: the disk is full or the folder cannot be written; the files that were
            written before are complete.
        ImportError: the package safetensors is missing.

    Example:

    ```python
    cache_teacher(distiller, records, "teacher_cache")
    cached = BetaKDDistiller(CachedTeacher("teacher_cache"), student, energies, beta)
    cached.compile(optimizer=keras.optimizers.AdamW(1e-4))
    cached.fit(records, epochs=10)
    ```
    """
    source = TeacherSource(
        distiller_or_teacher, max_response_length, top_k, prompt_template
    )
    batches = as_dataset(dataset, batch_size)
    if batches is None or is_endless(batches):
        raise ValueError(
            "`dataset` must be raw records or batches of them, and come to an end. "
            f"Received: {type(dataset).__name__}"
        )
    with FolderOwner(directory, "cache_teacher") as owner:
        _build(CacheFolder(directory, owner), source, batches, verbose)
    return CachedTeacher(directory)


def _build(folder, source, batches, verbose):
    """Writes the files that are missing; compares those that are there."""
    settings = source.settings()
    _expect_same(folder, settings)
    digests = {"settings.json": settings.digest}
    head = source.head()
    if head:
        expect_finite_head(head)
        digests[HEAD] = _written_or_verified(folder, HEAD, head, settings.digest)
    made = _record_files(folder, batches, source, settings.digest, verbose)
    folder.write_index({**digests, **made})


def _record_files(folder, batches, source, settings_digest, verbose):
    """Writes the files of records that are missing; returns the digests of all."""
    digests, seen, finite = {}, set(), FiniteTokens()
    progress = keras.utils.Progbar(batches.num_batches, verbose=verbose)
    begin(batches)
    batches.on_epoch_begin()
    file = _File(folder, 0, source, settings_digest)
    i = 0
    while has_batch(batches, i):
        batch = checked_records(batches[i])
        ids = ids_of(batch)
        _expect_once(ids, seen)
        file.add(ids, batch)
        if file.is_full or not has_batch(batches, i + 1):
            digests[file.name] = file.close(finite)
            file = _File(folder, len(digests), source, settings_digest)
        progress.add(1)
        i += 1
    if not seen:
        raise ValueError(
            "`dataset` must hold at least one record. Received: none; was everything "
            "filtered out?"
        )
    finite.report()
    return digests


def _expect_same(folder, settings):
    """Writes the settings of a new cache, or checks those of one begun before."""
    before = folder.settings()
    if before is None:
        folder.write_settings(settings)
        return
    before, settings = dataclasses.asdict(before), dataclasses.asdict(settings)
    differing = sorted(k for k in settings if settings[k] != before[k])
    if differing:
        raise ValueError(
            f"The teacher cache in '{folder.path}' was begun with another "
            f"{' and another '.join(differing)}. Received: "
            f"{ {k: settings[k] for k in differing} }, there: "
            f"{ {k: before[k] for k in differing} }. Use another directory, or "
            "delete that one. (`CachedTeacher` reads a complete cache as it is.)"
        )


def _written_or_verified(folder, name, arrays, settings_digest):
    """Writes a file, or verifies it if it exists; returns its digest."""
    if not folder.exists(name):
        return folder.write_shard(name, arrays, settings_digest)
    found = folder.open(name)
    found.expect_settings(settings_digest)
    return found.verify(found.digest).digest


class _File:
    """The next file of records: written, or compared if it exists already."""

    def __init__(self, folder, number, source, settings_digest):
        self.folder, self.source = folder, source
        self.settings_digest = settings_digest
        self.name = f"{number:05d}.safetensors"
        self.found = folder.open(self.name) if folder.exists(self.name) else None
        if self.found is not None:
            self.found.expect_settings(settings_digest)
        self.records, self.parts = [], []

    def add(self, ids, batch):
        digests = fingerprints.of_records(batch)
        self.records += zip(ids, digests, strict=True)
        if self.found is None:
            self.parts.append(self.source.outputs(batch))
            return
        before = [(r.id, r.digest) for r in self.found.records[: len(self.records)]]
        if before != self.records:
            raise ValueError(
                f"The file '{self.folder.path / self.name}' of the teacher cache holds "
                "other records than the data set has at this place. Give the same "
                "records in the same order and batches (no shuffling), or use another "
                "directory."
            )

    @property
    def is_full(self):
        if self.found is not None:
            return len(self.records) == len(self.found.records)
        size = sum(array.nbytes for part in self.parts for array in part.values())
        return size >= FILE_BYTES or len(self.records) >= FILE_RECORDS

    def close(self, finite):
        """Writes, or verifies, the file; returns its digest.

        Args:
            finite: the `FiniteTokens` of the cache.
        """
        if self.found is not None:
            self.found.verify(self.found.digest)
            finite.add(self.found.records, self.found.arrays())
            return self.found.digest
        tokens = [int(n) for part in self.parts for n in part.pop("tokens")]
        arrays = {
            name: compacted(np.concatenate([p[name] for p in self.parts]))
            for name in self.parts[0]
        }
        records = [
            CachedRecord(*record, number)
            for record, number in zip(self.records, tokens, strict=True)
        ]
        finite.add(records, arrays)
        return self.folder.write_shard(self.name, arrays, self.settings_digest, records)


def _expect_once(keys, seen):
    """Adds ids to the set of those that were seen; raises if one is in it."""
    for key in keys:
        if key in seen:
            raise ValueError(
                f"Two records have the id '{key}'. A teacher cache finds records by "
                "their ids; give each its own."
            )
        seen.add(key)
