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

from keras_betakd.preprocessing.checks import check_same_answers
from keras_betakd.preprocessing.encoding import Encoder, ModelEncoder
from keras_betakd.preprocessing.image_formats import format_of
from keras_betakd.preprocessing.image_inputs import drop_mark
from keras_betakd.preprocessing.records import (
    as_text,
    as_turns,
    encoded_ids,
    record_ids,
)
from keras_betakd.preprocessing.token_alignment import aligned_slots


class DistillationPreprocessor:
    """Turns raw records into `(x, y, sample_weight)` for a `BetaKDDistiller`.

    Args:
        teacher_preprocessor: the teacher's keras-hub `CausalLMPreprocessor`, or that
            of a `CachedTeacher`.
        student_preprocessor: the student's. Both must share one vocabulary.
        max_response_length: K, the most answer tokens of a record, its end mark
            included. Static, so that XLA compiles once; every slot costs a row of
            logits in both models. Defaults to 64.
        blind_student: whether the student, a model for text alone, is to answer
            without the pictures that the teacher sees; marks are taken out of its
            prompts. Defaults to `False`: pictures that it cannot see are an error.
        cross_tokenizer: whether the two have different tokenizers. Each answer token of
            the student is then paired with the teacher's that continues the same text;
            `x["aligned"]`, (B, K), is 1 where there is one and 0 elsewhere. Only
            `ULDEnergy` and energies of features compare such models.

    Call arguments:
        records: dict of lists or arrays with `"prompts"`, `"responses"`, and where the
            models see, `"images"`; as keras-hub takes them. A prompt marks each picture
            with `<image>` or with the model's own mark. Optional `"ids"` are named in
            errors and warnings; `x["ids"]`, (B, 64), holds them as bytes.

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
        self,
        teacher_preprocessor,
        student_preprocessor,
        max_response_length=64,
        blind_student=False,
        cross_tokenizer=False,
    ):
        if not isinstance(max_response_length, int) or max_response_length < 1:
            raise ValueError(
                "`max_response_length` must be a positive integer. Received: "
                f"max_response_length={max_response_length}"
            )
        self.teacher_preprocessor = teacher_preprocessor
        self.student_preprocessor = student_preprocessor
        self.max_response_length = max_response_length
        self.blind_student = blind_student
        self.cross_tokenizer = cross_tokenizer
        self._vocabularies_checked = False
        if cross_tokenizer and self._teacher.tokenizer is None:
            raise ValueError(
                "A cached teacher has the answer tokens of its own tokenizer only. For "
                "different tokenizers (`ULDEnergy`) give the teacher itself."
            )

    @property
    def _teacher(self):
        found = self.teacher_preprocessor
        return found if isinstance(found, Encoder) else ModelEncoder(found, "teacher")

    @property
    def _student(self):
        return ModelEncoder(self.student_preprocessor, "student")

    def __call__(self, records):
        _check_records(records)
        if not self.cross_tokenizer:
            self._check_vocabularies()
        ids = record_ids(records, len(records["prompts"]))
        length = self.max_response_length
        shown = _without_images(records) if self.blind_student else records
        student = self._student.encode(shown, ids, length)
        if self.teacher_preprocessor is self.student_preprocessor:
            teacher = student
        else:
            teacher = self._teacher.encode(records, ids, length)
        x = {
            "student": student.inputs,
            "teacher": self._without_shared_images(teacher.inputs),
            "student_positions": student.positions,
        }
        if self.cross_tokenizer:
            x.update(self._aligned(teacher, student))
        else:
            check_same_answers(teacher.labels, student.labels, ids)
            x["teacher_positions"] = teacher.positions
        if records.get("ids") is not None:
            x["ids"] = encoded_ids([as_text(i) for i in records["ids"]])
        return x, student.labels, student.weights

    def _check_vocabularies(self):
        # Not in the constructor: a model that is being loaded gets its vocabulary
        # after it is made.
        if not self._vocabularies_checked:
            self._teacher.check_vocabulary(self.student_preprocessor)
            self._vocabularies_checked = True

    def _aligned(self, teacher, student):
        """The teacher's positions at the student's answer tokens, where it has one."""
        positions = np.zeros_like(teacher.positions)
        aligned = np.zeros_like(student.weights)
        for i in range(len(positions)):
            answers = [m.labels[i][m.weights[i] > 0] for m in (teacher, student)]
            slots = aligned_slots(
                self._teacher.tokenizer, self._student.tokenizer, *answers
            )
            found = np.flatnonzero(slots >= 0)
            positions[i, found] = teacher.positions[i, slots[found]]
            aligned[i, found] = 1.0
        return {"teacher_positions": positions, "aligned": aligned}

    def _without_shared_images(self, inputs):
        """The teacher's inputs without images that equal the student's.

        The distiller hands the student's images to a teacher that has none.
        """
        form = self._teacher.image_form()
        if form is None or form != self._student.image_form():
            return inputs
        shared = format_of(self.student_preprocessor).image_keys
        return {name: value for name, value in inputs.items() if name not in shared}


def _check_records(records):
    missing = [k for k in ("prompts", "responses") if k not in records]
    if missing:
        raise ValueError(
            f"Raw records need {missing} beside what they have. Expected a dict "
            'with "prompts", "responses" and, for models that see, "images". '
            f"Received: keys={sorted(records)}"
        )
    sizes = {key: len(records[key]) for key in ("prompts", "responses")}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"Every prompt needs one response. Received: {sizes} entries.")


def _without_images(records):
    prompts = [[drop_mark(t) for t in as_turns(p)] for p in records["prompts"]]
    rest = {key: value for key, value in records.items() if key != "images"}
    return {**rest, "prompts": prompts}
