"""From raw records to the answer-position form that the distiller trains on.

Logits are needed only where an answer token is predicted, and the two models may
place that token differently (another number of image tokens, another length). So
each model's own keras-hub preprocessor runs on the records, and the positions of
its answer tokens are written down:

    x = {"student": {...}, "teacher": {...},
         "student_positions": (B, K), "teacher_positions": (B, K)}
    y = (B, K) token ids
    sample_weight = (B, K), 0 in unused slots

keras-hub hands out labels that are shifted by one already, and weights that mark the
response: nothing is shifted again here.
"""

import numpy as np
from keras import ops

from keras_betakd.models.inputs import model_inputs, record_ids, training_inputs
from keras_betakd.models.towers import settings

# How far to look for the true length of a record that fills its sequence.
MAX_DOUBLINGS = 12


class DistillationPreprocessor:
    """Turns raw records into `(x, y, sample_weight)` for a `BetaKDDistiller`.

    Args:
        teacher_preprocessor: the teacher's keras-hub `CausalLMPreprocessor`.
        student_preprocessor: the student's. Both must share one vocabulary.
        max_response_length: K, the most answer tokens of a record, its end mark
            included. Static, so that XLA compiles once; every slot costs a row of
            logits in both models. Defaults to 64.

    Call arguments:
        records: dict of lists or arrays with `"prompts"`, `"responses"`, and where the
            models see, `"images"`; as keras-hub takes them. A prompt marks each picture
            with `<image>` or with the model's own mark. Optional `"ids"` are named in
            errors.

    Returns:
        `(x, y, sample_weight)` as NumPy arrays, in the form above. Where both models
        take a picture in the same form, it stands in `x["student"]` alone.

    Raises:
        ValueError: different vocabularies; a record that does not fit in a sequence
            (it would be cut: the text, the answer or the image tokens) or whose answer
            does not fit in K; pictures and marks that do not agree. The message
            names the record, the limit and the length needed.

    Example:

    ```python
    preprocessor = DistillationPreprocessor(
        teacher.preprocessor, student.preprocessor, max_response_length=16
    )
    x, y, sample_weight = preprocessor(
        {
            "images": [picture],
            "prompts": ["<image>\\nwhat color is the shape?"],
            "responses": ["teal"],
        }
    )
    ```
    """

    def __init__(
        self, teacher_preprocessor, student_preprocessor, max_response_length=64
    ):
        if not isinstance(max_response_length, int) or max_response_length < 1:
            raise ValueError(
                "`max_response_length` must be a positive integer. Received: "
                f"max_response_length={max_response_length}"
            )
        self.teacher_preprocessor = teacher_preprocessor
        self.student_preprocessor = student_preprocessor
        self.max_response_length = max_response_length
        self._vocabularies_checked = False

    def __call__(self, records):
        self._check_records(records)
        self._check_vocabularies()
        ids = record_ids(records, len(records["prompts"]))
        student = self._encode(self.student_preprocessor, records, ids, "student")
        if self.teacher_preprocessor is self.student_preprocessor:
            teacher = student
        else:
            teacher = self._encode(self.teacher_preprocessor, records, ids, "teacher")
        _check_same_answers(teacher["y"], student["y"], ids)
        x = {
            "student": student["x"],
            "teacher": self._without_same_pictures(teacher["x"]),
            "student_positions": student["positions"],
            "teacher_positions": teacher["positions"],
        }
        return x, student["y"], student["sample_weight"]

    def _without_same_pictures(self, x):
        """The distiller gives the teacher the student's pictures, where it has none."""
        if not _same_pictures(self.teacher_preprocessor, self.student_preprocessor):
            return x
        return {name: value for name, value in x.items() if name != "images"}

    def _encode(self, preprocessor, records, ids, role):
        inputs = model_inputs(preprocessor, records)
        x, y, weight = _to_numpy(training_inputs(preprocessor, inputs))
        if _is_full(weight):
            _check_length(preprocessor, inputs, weight.shape[1], ids, role)
        positions, weights = self._answer_slots(weight, ids)
        return {
            "x": x,
            "y": np.where(weights > 0, np.take_along_axis(y, positions, 1), 0),
            "positions": positions,
            "sample_weight": weights,
        }

    def _answer_slots(self, weight, ids):
        """The positions of the supervised tokens, moved to the front of K slots."""
        size = self.max_response_length
        positions = np.zeros((len(weight), size), dtype="int32")
        weights = np.zeros((len(weight), size), dtype="float32")
        for i, row in enumerate(weight):
            found = np.flatnonzero(row)
            if len(found) > size:
                raise ValueError(
                    f"The answer of record {ids[i]} has {len(found)} tokens with its "
                    f"end mark, more than max_response_length={size}. Raise "
                    "`max_response_length`, or leave the record out."
                )
            positions[i, : len(found)] = found
            weights[i, : len(found)] = row[found]
        return positions, weights

    def _check_records(self, records):
        missing = [k for k in ("prompts", "responses") if k not in records]
        if missing:
            raise ValueError(
                f"Raw records need {missing} beside what they have. Expected a dict "
                'with "prompts", "responses" and, for models that see, "images". '
                f"Received: keys={sorted(records)}"
            )
        sizes = {key: len(records[key]) for key in ("prompts", "responses")}
        if len(set(sizes.values())) > 1:
            raise ValueError(
                f"Every prompt needs one response. Received: {sizes} entries."
            )

    def _check_vocabularies(self):
        # Not in the constructor: a model that is being loaded gets its vocabulary
        # after it is made.
        if self._vocabularies_checked:
            return
        teacher, student = self.teacher_preprocessor, self.student_preprocessor
        if teacher.tokenizer is not student.tokenizer:
            _check_same_vocabulary(teacher.tokenizer, student.tokenizer)
        if teacher.add_end_token != student.add_end_token:
            raise ValueError(
                "Teacher and student must both end their answers, or both not. "
                f"Received: teacher add_end_token={teacher.add_end_token}, student "
                f"add_end_token={student.add_end_token}"
            )
        self._vocabularies_checked = True


def _same_pictures(teacher, student):
    """Whether two preprocessors make the same array of the same pictures."""

    def form(preprocessor):
        converter = getattr(preprocessor, "image_converter", None)
        if converter is None:
            return None
        count = getattr(preprocessor, "max_images_per_prompt", None)
        return type(preprocessor), type(converter), count, settings(converter)

    return form(teacher) == form(student)


def _to_numpy(batch):
    x, y, weight = batch
    x = {key: ops.convert_to_numpy(value) for key, value in x.items()}
    return x, ops.convert_to_numpy(y), ops.convert_to_numpy(weight).astype("float32")


def _is_full(weight):
    """Whether some answer reaches the end of its sequence, so may have been cut."""
    return bool((weight[:, -1] > 0).any())


def _check_length(preprocessor, inputs, limit, ids, role):
    """Raises for the records that a packer has cut in silence.

    A full sequence looks the same whether it fits exactly or was cut, so the records
    are packed again with more and more room until every answer ends before it. The
    answer with its end mark comes last, and a packer cuts the prompt as well as it.
    """
    length = limit
    for _ in range(MAX_DOUBLINGS):
        length *= 2
        _, _, weight = _to_numpy(training_inputs(preprocessor, inputs, length))
        if not _is_full(weight):
            break
    for name, row in zip(ids, weight, strict=True):
        size = int(np.flatnonzero(row)[-1]) + 1
        if size > limit:
            raise ValueError(
                f"Record {name} needs a sequence_length of {size} in the {role}'s "
                f"preprocessor, more than its {limit}: image tokens, text or answer "
                f"would be cut off. Raise `{role}.preprocessor.sequence_length`, "
                "shorten the record, or leave it out."
            )


def _check_same_vocabulary(teacher, student):
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
        "teacher's family."
    )


def _check_same_answers(teacher, student, ids):
    for i, name in enumerate(ids):
        if not np.array_equal(teacher[i], student[i]):
            raise ValueError(
                f"Teacher and student tokenize the answer of record {name} "
                f"differently. Received: teacher ids={teacher[i].tolist()}, student "
                f"ids={student[i].tolist()}"
            )
