"""Counts where a teacher's stored outputs are NaN or infinite, as training would."""

import warnings

import numpy as np
from keras import ops

from keras_betakd.distillation.nonfinite import NAMED, finite_rows
from keras_betakd.models.outputs import ModelOutputs


class FiniteTokens:
    """The answer tokens of a cache, and those of them that no energy can use."""

    def __init__(self):
        self._tokens = self._nonfinite = 0
        self._records = []

    def add(self, records, arrays):
        """Counts the tokens of a file.

        Args:
            records: its `CachedRecord`s.
            arrays: dict of its arrays.

        Raises:
            ValueError: not one token of the files so far has finite outputs.
        """
        found = {
            name: ops.convert_to_tensor(np.asarray(arrays[name], "float32"))
            for name in ("rows", "packed")
            if name in arrays
        }
        finite = ops.convert_to_numpy(finite_rows(ModelOutputs(**found)))
        self._tokens += len(finite)
        self._nonfinite += int((~finite).sum())
        ends = np.cumsum([record.tokens for record in records])
        for record, end in zip(records, ends, strict=True):
            if not finite[end - record.tokens : end].all():
                self._records.append(record.id)
        if self._tokens and self._nonfinite == self._tokens:
            raise ValueError(
                f"The teacher's outputs are NaN or infinite at all {self._tokens} "
                f"answer tokens so far, of records {self._named()}: nothing could be "
                "learned from them. Is it loaded with its weights, and run in bfloat16 "
                "or float32 instead of float16?"
            )

    def report(self):
        """Warns of tokens that training will leave out."""
        if self._nonfinite:
            warnings.warn(
                f"The teacher gave NaN or infinity at {self._nonfinite} of "
                f"{self._tokens} answer tokens, of records {self._named()}. Training "
                "leaves them out of the energies. Run the teacher in bfloat16 or "
                "float32 instead of float16.",
                RuntimeWarning,
                stacklevel=3,
            )

    def _named(self):
        more = ", ..." if len(self._records) > NAMED else ""
        return ", ".join(map(repr, self._records[:NAMED])) + more


def expect_finite_head(arrays):
    """Raises a `ValueError` if logits of a stored LM head could not be finite.

    Args:
        arrays: dict of its arrays. A bias of -inf excludes a class.
    """
    for name, value in arrays.items():
        value = np.asarray(value, "float32")
        allowed = np.isfinite(value) | ((value < 0) & (name == "bias"))
        if not allowed.all():
            raise ValueError(
                f"The {name} of the teacher's LM head holds {(~allowed).sum()} values "
                "that are NaN or infinite, so that no probability could be computed. "
                "Is the teacher loaded with its weights?"
            )
