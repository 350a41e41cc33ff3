"""Checks that records fit in a sequence and that teacher and student tokenize alike."""

import numpy as np

from keras_betakd.preprocessing.image_formats import format_of
from keras_betakd.preprocessing.model_inputs import training_inputs
from keras_betakd.preprocessing.records import to_numpy

# How often the sequence is doubled to find the length of a record that fills it.
MAX_DOUBLINGS = 12


# How many records an error or warning names.
NAMED = 8


class RecordsTooLong(ValueError):
    """Records do not fit in a sequence, or their answers in the answer positions.

    Args:
        reasons: dict of the row of each record in its batch to a sentence that names it
            and says what it needs.

    Attributes:
        reasons: the same.
    """

    def __init__(self, reasons):
        self.reasons = reasons
        found = list(reasons.values())
        shown = " ".join(found[:NAMED])
        count = f"{len(found)} records of a batch do not fit. " if found[1:] else ""
        super().__init__(
            f'{count}{shown} Or pass `on_too_long="skip"`, which leaves out what does '
            "not fit; `distiller.check_records(data)` lists all of it before training."
        )


def check_lengths(preprocessor, inputs, batch, ids, role):
    """Checks that keras-hub's packers have cut no record, which they do silently.

    A sequence that is full may fit exactly or have been cut, so the records are packed
    again in longer and longer sequences until none is full. The answer and its end mark
    come last, and packers cut prompts and answers alike.

    Args:
        preprocessor: a keras-hub preprocessor.
        inputs: the records as `model_inputs` returns them.
        batch: `(x, sample_weight)`, the records as packed by the preprocessor.
        ids: B strings that name the records in errors.
        role: `"teacher"` or `"student"`; errors name it.

    Raises:
        RecordsTooLong: records were cut. The message says which lengths they need.
    """
    family = format_of(preprocessor)
    used = family.lengths(*batch)
    limits = {name: limit for name, (_, limit) in used.items()}
    if not _are_full(used):
        return
    length = max(limits.values())
    for _ in range(MAX_DOUBLINGS):
        length *= 2
        x, _, weight = to_numpy(training_inputs(preprocessor, inputs, length))
        used = family.lengths(x, weight)
        if not _are_full(used):
            break
    reasons = {}
    for name, (sizes, _) in used.items():
        for row, (record, size) in enumerate(zip(ids, sizes, strict=True)):
            if size > limits[name]:
                reasons[row] = (
                    f"Record {record} needs a {name} of {size} in the {role}'s "
                    f"preprocessor, more than its {limits[name]}: image tokens, text "
                    f"or answer would be cut off. Raise `{role}.preprocessor.{name}`, "
                    "shorten the record, or leave it out."
                )
    if reasons:
        raise RecordsTooLong(reasons)


def _are_full(used):
    """Whether a record reaches the end of a sequence, and so may have been cut."""
    return any((sizes >= limit).any() for sizes, limit in used.values())


def check_same_vocabulary(teacher, student):
    """Raises a `ValueError` unless two tokenizers have the same tokens in order."""
    ours, theirs = student.get_vocabulary(), teacher.get_vocabulary()
    if list(ours) == list(theirs):
        return
    differing = [
        i
        for i, pair in enumerate(zip(theirs, ours, strict=False))
        if pair[0] != pair[1]
    ]
    first = differing[0] if differing else min(len(ours), len(theirs))
    raise ValueError(
        "Teacher and student must have the same vocabulary: class i of one must be "
        f"class i of the other. The teacher's {type(teacher).__name__} has "
        f"{len(theirs)} tokens, the student's {type(student).__name__} has "
        f"{len(ours)}; they differ first at id {first}. Use a student of the "
        "teacher's family, or `ULDEnergy`, which compares models with different "
        "tokenizers."
    )


def check_same_answers(teacher, student, ids):
    """Raises a `ValueError` unless the labels (B, K) of both models are equal."""
    for i, name in enumerate(ids):
        if not np.array_equal(teacher[i], student[i]):
            raise ValueError(
                f"Teacher and student tokenize the answer of record {name} "
                f"differently. Received: teacher ids={teacher[i].tolist()}, student "
                f"ids={student[i].tolist()}"
            )
