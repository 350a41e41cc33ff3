"""`DistillationPreprocessor`: raw records to the distiller's form of a batch.

Logits are needed only at the positions that predict an answer token, and these differ
between the two models (another number of image tokens, another length). So each model's
keras-hub preprocessor encodes the records, and the positions of its answer tokens are
recorded. keras-hub returns labels that are already shifted by one, and weights that
mark the response, so nothing is shifted here.
"""

import copy
import numbers
from typing import Any

import numpy as np

from keras_betakd.data.batches import expect_positive
from keras_betakd.preprocessing.adapters import take_records
from keras_betakd.preprocessing.chat_template import ChatTemplate
from keras_betakd.preprocessing.checks import RecordsTooLong, check_same_answers
from keras_betakd.preprocessing.encoding import Encoder, ModelEncoder
from keras_betakd.preprocessing.image_formats import format_of
from keras_betakd.preprocessing.image_inputs import drop_mark
from keras_betakd.preprocessing.prompt_templates import (
    PromptTemplate,
    by_role,
    resolved_template,
    template_label,
)
from keras_betakd.preprocessing.read_ahead import default_workers
from keras_betakd.preprocessing.record_checks import (
    CheckedRecords,
    checked_records,
    expect_prompts,
)
from keras_betakd.preprocessing.records import encoded_ids
from keras_betakd.preprocessing.student_template import remember_for_student
from keras_betakd.preprocessing.token_alignment import aligned_slots
from keras_betakd.preprocessing.unknown_tokens import (
    UnknownTokensWarning,
    unknown_tokens,
)


class DistillationPreprocessor:
    """Turns raw records into `(x, y, sample_weight)` for a `BetaKDDistiller`.

    Args:
        teacher_preprocessor: the teacher's keras-hub `CausalLMPreprocessor`, or that
            of a `CachedTeacher`.
        student_preprocessor: the student's. Unless `cross_tokenizer`, both must have
            the same vocabulary.
        max_response_length: K, the maximum number of answer tokens of a record, its end
            mark included. It is static, so that XLA compiles once; each of the K
            positions costs a row of logits in both models. Defaults to 64.
        blind_student: whether the student, a text model, answers without the images
            that the teacher takes; image marks are removed from its prompts. Defaults
            to `False`: images are an error for a model that takes none.
        cross_tokenizer: whether the two have different tokenizers. Each answer token of
            the student is then paired with the teacher's token that continues the same
            text; `x["aligned"]`, (B, K), is 1 where there is one and 0 elsewhere. Only
            `ULDEnergy` and energies of features compare such models.
        on_too_long: what to do about a record that does not fit in a sequence, or whose
            answer has more than K tokens. `"raise"` (default): an error that names it.
            `"skip"`: another record that fits takes its row with weight 0, so that it
            changes no loss and no gradient and batches keep their shape; `fit` and
            `evaluate` name what was left out in a warning at the end of an epoch.
        workers: the number of threads in which `fit`, `evaluate` and `predict`
            preprocess batches ahead of the steps, in order and with the same numbers;
            0 for none. Defaults to one less than there are cores, 1 to 4.
        max_queue_size: the most batches that wait for their step, each as large in
            memory as its images. Defaults to one more than `workers`.
        prompt_template: the template that each model's prompts are written in, for
            instruction-tuned models. `"auto"` (default): the model's own where it is
            known (`load_model` of an instruction-tuned preset), else none; what was
            chosen is logged once. A name or a `ChatTemplate`
            (`keras_betakd.preprocessing.chat_template`), for both models; `None` for
            prompts as they are; or a function of a list of messages, `{"role",
            "content"}` each, that returns the prompt. Or a dict of these for
            `"teacher"` and `"student"`.
        trained_turns: the `"all"` (default) or the `"last"` of the answers of a
            conversation are trained, with the mark that ends each.

    Attributes:
        prompt_templates: dict of `"teacher"` and `"student"` to the `ChatTemplate`, the
            function, or `None`.
        skipped: dict of the names of records left out to the reasons, since `fit`
            last reported them. (Processes of a data set with `use_multiprocessing`
            have copies of their own, which are not reported.)
        note_unknown: function that is given a dict of the names of a batch's records
            whose answers have tokens that the tokenizer does not know, to how many. It
            warns of the first batch with one.

    Call arguments:
        records: dict of lists or arrays with `"prompts"`, `"responses"` and, for models
            that take images, `"images"`: an array (B, H, W, 3), or for each record
            whatever `keras_betakd.data.load_image` reads, a list of that, or `None`. A
            prompt marks each image with `<image>` or with the model's own mark.
            Optional `"ids"` are named in errors and warnings; `"sample_weight"` and
            `"task_weight"` (a factor of the cross-entropy's weight alone) are read by
            the distiller; `"system"` holds system prompts, `None` where there is none;
            `"response_tokens"` holds answers as token ids of both models, the end mark
            included, or `None` for those whose `"responses"` are texts. With a chat
            template, prompts and responses may be lists of turns. Other keys are
            refused.

    Returns:
        `(x, y, sample_weight)` as NumPy arrays. `x` is a dict of the inputs of both
        models, the positions that predict their answer tokens, and the records' ids;
        `keras_betakd.preprocessing.batches` describes each of its keys. `y`, (B, K),
        holds the token ids of the student's answers and `sample_weight`, (B, K), their
        weights; both are 0 in unused slots.

    Raises:
        ValueError: different vocabularies; two prompt templates for models that share
            one preprocessor object; unless they are skipped, a record that does not fit
            in a sequence (its text, answer or image tokens would be cut) or whose
            answer has more than K tokens; a number of images that differs from that of
            the marks; a missing or empty text, an image that cannot be read, a special
            token of the model in a text (see
            `keras_betakd.preprocessing.model_inputs`). The message names the record,
            and the limit and the length needed.

    Example:

    ```python
    preprocessor = DistillationPreprocessor(
        teacher.preprocessor, student.preprocessor, max_response_length=16
    )
    x, y, sample_weight = preprocessor(
        {
            "images": [image],
            "prompts": ["<image>\\nwhat color is the shape?"],
            "responses": ["teal"],
        }
    )
    ```
    """

    def __init__(
        self,
        teacher_preprocessor: Any,
        student_preprocessor: Any,
        max_response_length: int = 64,
        blind_student: bool = False,
        cross_tokenizer: bool = False,
        on_too_long: str = "raise",
        workers: int | None = None,
        max_queue_size: int | None = None,
        prompt_template: PromptTemplate | dict[str, PromptTemplate] = "auto",
        trained_turns: str = "all",
    ):
        if on_too_long not in ("raise", "skip"):
            raise ValueError(
                '`on_too_long` must be "raise" or "skip". Received: '
                f"on_too_long={on_too_long!r}"
            )
        expect_positive("max_response_length", max_response_length)
        if trained_turns not in ("all", "last"):
            raise ValueError(
                '`trained_turns` must be "all" or "last". Received: '
                f"trained_turns={trained_turns!r}"
            )
        self.teacher_preprocessor = teacher_preprocessor
        self.student_preprocessor = student_preprocessor
        self.max_response_length = int(max_response_length)
        self.blind_student = blind_student
        self.cross_tokenizer = cross_tokenizer
        self.on_too_long = on_too_long
        _expect_count("workers", workers, 0)
        _expect_count("max_queue_size", max_queue_size, 1)
        self.workers = default_workers() if workers is None else workers
        if on_too_long == "skip":
            self.workers = min(self.workers, 1)  # a record that fit is remembered
        self.max_queue_size = max_queue_size or self.workers + 1
        self.trained_turns = trained_turns
        self.prompt_templates = self._resolved_templates(prompt_template)
        self.skipped: dict[str, str] = {}
        self.note_unknown = UnknownTokensWarning()
        self._filler = None
        self._vocabularies_checked = False
        if cross_tokenizer and self._teacher.tokenizer is None:
            raise ValueError(
                "A cached teacher has the answer tokens of its own tokenizer only. For "
                "different tokenizers (`ULDEnergy`) give the teacher itself."
            )

    def _resolved_templates(self, prompt_template):
        given = by_role(prompt_template)
        found = {
            role: template
            if isinstance(preprocessor, Encoder)
            else resolved_template(template, format_of(preprocessor))
            for (role, template), preprocessor in zip(
                given.items(),
                (self.teacher_preprocessor, self.student_preprocessor),
                strict=True,
            )
        }
        if isinstance(self.teacher_preprocessor, Encoder):
            self.teacher_preprocessor.expect_template(found["teacher"])
        self._remember(given, found)
        return found

    def _remember(self, given, found):
        pair = self.teacher_preprocessor, self.student_preprocessor
        remember_for_student(*pair, given, found)

    @property
    def _teacher(self):
        return self._encoder("teacher", self.teacher_preprocessor)

    @property
    def _student(self):
        return self._encoder("student", self.student_preprocessor)

    def _encoder(self, role, preprocessor):
        if isinstance(preprocessor, Encoder):
            return preprocessor
        options = self.prompt_templates[role], self.trained_turns
        return ModelEncoder(preprocessor, role, *options)

    def __call__(self, records):
        records = _with_responses(records)
        if self.cross_tokenizer:
            _expect_texts(records)
        else:
            self._check_vocabularies()
        ids = records.names
        shares_images = self._shares_images()
        if shares_images:
            records = self._with_resized_images(records)
        records, student, teacher, reasons = self._fitting(records, ids)
        self.skipped.update({ids[row]: reason for row, reason in reasons.items()})
        student.weights[list(reasons)] = 0
        tokenizer = self.student_preprocessor.tokenizer
        self.note_unknown(unknown_tokens(student, tokenizer, records))
        x = {
            "student": student.inputs,
            "teacher": self._without_images(teacher.inputs)
            if shares_images
            else teacher.inputs,
            "student_positions": student.positions,
        }
        if self.cross_tokenizer:
            x.update(self._aligned(teacher, student))
        else:
            check_same_answers(teacher.labels, student.labels, ids)
            x["teacher_positions"] = teacher.positions
        if records["ids"] is not None:
            x["ids"] = encoded_ids(records["ids"])
        return x, student.labels, student.weights

    def _fitting(self, records, ids):
        """The records, encoded for both models; others in place of what is too long.

        Returns:
            `(records, student, teacher, reasons)`: the records that were encoded, what
            they became, and a dict of the rows left out to the reasons.
        """
        reasons = {}
        while True:
            try:
                student, teacher = self._encode(records, ids)
            except RecordsTooLong as error:
                if self.on_too_long == "raise":
                    raise
                reasons.update(error.reasons)
                records = self._refilled(records, reasons, error)
            else:
                fit = [row for row in range(len(ids)) if row not in reasons]
                if self.on_too_long == "skip" and fit:
                    self._filler = take_records(dict(records), fit[:1])
                return records, student, teacher, reasons

    def _refilled(self, records, reasons, error):
        """Records with one that fits in the rows of those that do not."""
        fit = [row for row in range(len(records["prompts"])) if row not in reasons]
        filler = take_records(dict(records), fit[:1]) if fit else self._filler
        if filler is None:
            raise ValueError(
                "No record of the first batch fits, so there is none to take the "
                f"place of the others. {error}"
            ) from error
        whole = copy.copy(records)  # with the places of the records
        for key, values in filler.items():
            if values is not None:
                whole[key] = list(records[key])
                for row in reasons:
                    whole[key][row] = values[0]
        return whole

    def _encode(self, records, ids):
        length = self.max_response_length
        shown = without_images(records) if self.blind_student else records
        student = self._student.encode(shown, ids, length)
        is_one = self.teacher_preprocessor is self.student_preprocessor
        templates = self.prompt_templates
        if is_one and templates["teacher"] == templates["student"]:
            return student, student
        return student, self._teacher.encode(records, ids, length)

    def _check_vocabularies(self):
        # Not in the constructor: a model that is being loaded gets its vocabulary
        # after it is made.
        if not self._vocabularies_checked:
            self._teacher.check_vocabulary(self.student_preprocessor)
            self._expect_same_ends()
            self._vocabularies_checked = True

    def _expect_same_ends(self):
        """Raises where answers end with one mark for one model, with another for one.

        Class by class, all their labels must be equal.
        """
        if isinstance(self.teacher_preprocessor, Encoder):
            return
        found = {
            role: template.end.strip() if isinstance(template, ChatTemplate) else None
            for role, template in self.prompt_templates.items()
        }
        tokenizer = self.student_preprocessor.tokenizer
        end = getattr(tokenizer, "end_token", None)
        ends = {role: mark or end for role, mark in found.items()}
        if ends["teacher"] != ends["student"]:
            names = {r: template_label(t) for r, t in self.prompt_templates.items()}
            raise ValueError(
                f"Answers of the teacher end with {ends['teacher']!r}, the student's "
                f"with {ends['student']!r}, by their prompt templates {names}: their "
                "labels would differ. Give one `prompt_template` that both have, or "
                "`None`."
            )

    def _aligned(self, teacher, student):
        """The teacher's positions for the student's answer tokens, as a part of `x`."""
        positions = np.zeros_like(teacher.positions)
        aligned = np.zeros_like(student.weights)
        for i in range(len(positions)):
            turns = zip(_turns(teacher, i), _turns(student, i), strict=True)
            for of_teacher, of_student in turns:
                slots = aligned_slots(
                    *(self._teacher.tokenizer, self._student.tokenizer),
                    *(teacher.labels[i][of_teacher], student.labels[i][of_student]),
                )
                found = of_student[slots >= 0]
                slots = of_teacher[slots[slots >= 0]]
                positions[i, found] = teacher.positions[i, slots]
                aligned[i, found] = 1.0
        return {"teacher_positions": positions, "aligned": aligned}

    def _shares_images(self):
        """Whether both models make equal arrays of equal images."""
        form = self._teacher.image_form()
        return form is not None and form == self._student.image_form()

    def _with_resized_images(self, records):
        """The records with images in the size of both models, which then keep it."""
        family = format_of(self.student_preprocessor)
        images = family.resized_images(records["images"])
        return CheckedRecords({**records, "images": images}, records.names)

    def _without_images(self, inputs):
        """The teacher's inputs without images that equal the student's.

        The distiller hands the student's images to a teacher that has none.
        """
        shared = format_of(self.student_preprocessor).image_keys
        return {name: value for name, value in inputs.items() if name not in shared}


def _expect_count(name, value, least):
    """Raises a `ValueError` unless an argument is `None` or a large enough integer."""
    is_count = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if value is not None and not (is_count and value >= least):
        raise ValueError(
            f"`{name}` must be an integer, at least {least}. Received: {name}={value!r}"
        )


def _turns(encoded, row):
    """The slots of each answer of a conversation: between two, there is a prompt."""
    slots = np.flatnonzero(encoded.weights[row] > 0)
    gaps = np.flatnonzero(np.diff(encoded.positions[row][slots]) > 1) + 1
    return np.split(slots, gaps)


def _with_responses(records):
    """The records, checked; raises a `ValueError` where a response is missing."""
    records = checked_records(records)
    if "responses" not in records:
        raise ValueError(
            "Raw records need ['responses'] beside what they have. Expected a dict "
            'with "prompts", "responses" and, for models that see, "images". '
            f"Received: keys={sorted(records)}"
        )
    rows = zip(records["prompts"], records["responses"], records.names, strict=True)
    for turns, answers, name in rows:
        if len(turns) != len(answers):
            raise ValueError(
                f"Record {name} has {len(turns)} prompt(s) and {len(answers)} "
                "response(s): every turn of a conversation needs its answer."
            )
    return records


def _expect_texts(records):
    """Raises for answers by token ids, which two tokenizers do not have in common."""
    given = zip(records.get("response_tokens") or (), records.names, strict=False)
    for tokens, name in given:
        if tokens is not None:
            raise ValueError(
                f'Record {name} has "response_tokens", ids of one tokenizer, but '
                "teacher and student have two. Leave them out: the answers as texts, "
                'in "responses", are tokenized for each. '
                f"Received: response_tokens={tokens!r:.80}"
            )


def without_images(records):
    """The records as a model without vision takes them."""
    prompts = [[drop_mark(text) for text in turns] for turns in records["prompts"]]
    images = [[] for _ in prompts]
    expect_prompts(prompts, images, records.names)
    shown = {**records, "prompts": prompts, "images": images}
    return CheckedRecords(shown, records.names)
