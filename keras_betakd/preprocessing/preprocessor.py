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

from keras_betakd.data.batches import expect_positive
from keras_betakd.preprocessing.adapters import take_records
from keras_betakd.preprocessing.checks import RecordsTooLong
from keras_betakd.preprocessing.encoding import Encoder
from keras_betakd.preprocessing.image_formats import format_of
from keras_betakd.preprocessing.image_inputs import drop_mark
from keras_betakd.preprocessing.prompt_templates import (
    PromptTemplate,
    by_role,
    resolved_template,
)
from keras_betakd.preprocessing.read_ahead import default_workers
from keras_betakd.preprocessing.record_checks import (
    CheckedRecords,
    checked_records,
    expect_prompts,
)
from keras_betakd.preprocessing.records import encoded_ids
from keras_betakd.preprocessing.student_template import remember_for_student
from keras_betakd.preprocessing.teacher_sides import (
    TeacherSide,
    by_teacher,
    encoder_of,
    joined,
    of_teacher,
)
from keras_betakd.preprocessing.unknown_tokens import (
    UnknownTokensWarning,
    unknown_tokens,
)


class DistillationPreprocessor:
    """Turns raw records into `(x, y, sample_weight)` for a `BetaKDDistiller`.

    Args:
        teacher_preprocessor: the teacher's keras-hub `CausalLMPreprocessor`, or that
            of a `CachedTeacher`; of several teachers, a dict of these by their names.
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
            `ULDEnergy` and energies of features compare such models. Of several
            teachers, one value for all, or a dict by their names.
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
            `"teacher"` and `"student"`; of several teachers it may have their names.
        trained_turns: the `"all"` (default) or the `"last"` of the answers of a
            conversation are trained, with the mark that ends each.

    Attributes:
        prompt_templates: dict of `"teacher"` (or the names of several) and `"student"`
            to the `ChatTemplate`, the function, or `None`.
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
        cross_tokenizer: bool | dict[str, bool] = False,
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
        self.cross_tokenizer = _expect_flags(cross_tokenizer, teacher_preprocessor)
        self.on_too_long = on_too_long
        _expect_count("workers", workers, 0)
        _expect_count("max_queue_size", max_queue_size, 1)
        self.workers = default_workers() if workers is None else workers
        if on_too_long == "skip":
            self.workers = min(self.workers, 1)  # a record that fit is remembered
        self.max_queue_size = max_queue_size or self.workers + 1
        self.trained_turns = trained_turns
        teachers = by_teacher(teacher_preprocessor)
        self.prompt_templates = self._resolved_templates(prompt_template, teachers)
        self.skipped: dict[str, str] = {}
        self.note_unknown = UnknownTokensWarning()
        self._filler = None
        self._student = encoder_of(
            student_preprocessor,
            "student",
            self.prompt_templates["student"],
            trained_turns,
        )
        self._sides = {name: self._side(name, x) for name, x in teachers.items()}

    def _resolved_templates(self, prompt_template, teachers):
        given = by_role(prompt_template, teachers)
        preprocessors = {**teachers, "student": self.student_preprocessor}
        found = {
            role: given[role]
            if isinstance(preprocessor, Encoder)
            else resolved_template(given[role], format_of(preprocessor))
            for role, preprocessor in preprocessors.items()
        }
        for name, teacher in teachers.items():
            if isinstance(teacher, Encoder):
                teacher.expect_template(found[name])
        self._remember(teachers, given, found)
        return found

    def _remember(self, teachers, given, found):
        remember_for_student(teachers, self.student_preprocessor, given, found)

    def _side(self, name, preprocessor):
        crosses = self.cross_tokenizer
        if isinstance(crosses, dict):
            crosses = crosses[name]
        return TeacherSide(
            preprocessor,
            self.student_preprocessor,
            (self.prompt_templates[name], self.prompt_templates["student"]),
            crosses,
            self.trained_turns,
            name,
        )

    def __call__(self, records):
        records = _with_responses(records)
        if any(side.crosses for side in self._sides.values()):
            _expect_texts(records)
        for name, side in self._sides.items():
            with of_teacher(name):
                side.check_vocabulary()
        ids = records.names
        sharing = self._sharing_images()
        records, student, teachers, reasons = self._fitting(records, ids, sharing)
        self.skipped.update({ids[row]: reason for row, reason in reasons.items()})
        student.weights[list(reasons)] = 0
        parts = {}
        for name, side in self._sides.items():
            with of_teacher(name):
                parts[name] = side.part_of_batch(
                    teachers[name], student, ids, name in sharing
                )
        tokenizer = self._student.tokenizer
        self.note_unknown(unknown_tokens(student, tokenizer, records))
        x = {
            "student": student.inputs,
            "student_positions": student.positions,
            **joined(parts),
        }
        if records["ids"] is not None:
            x["ids"] = encoded_ids(records["ids"])
        return x, student.labels, student.weights

    def student_side(self, records):
        """The student's side of a batch, as it is trained.

        Args:
            records: dict of raw records, as when called.

        Returns:
            An `Encoded`.

        Raises:
            ValueError: as when called; `RecordsTooLong`, whatever `on_too_long` is.
        """
        records = _with_responses(records)
        shown = without_images(records) if self.blind_student else records
        return self._student.encode(shown, records.names, self.max_response_length)

    def _fitting(self, records, ids, sharing):
        """The records, encoded for all models; others in place of what is too long.

        Returns:
            `(records, student, teachers, reasons)`: the records that were encoded, the
            `Encoded` of the student, a dict of those of the teachers, and a dict of the
            rows left out to the reasons.
        """
        reasons = {}
        while True:
            try:
                student, teachers = self._encode(records, ids, sharing)
            except RecordsTooLong as error:
                if self.on_too_long == "raise":
                    raise
                reasons.update(error.reasons)
                records = self._refilled(records, reasons, error)
            else:
                fit = [row for row in range(len(ids)) if row not in reasons]
                if self.on_too_long == "skip" and fit:
                    self._filler = take_records(dict(records), fit[:1])
                return records, student, teachers, reasons

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

    def _encode(self, records, ids, sharing):
        length = self.max_response_length
        # In the size that all models keep; a cache knows them as they were.
        resized = self._with_resized_images(records) if sharing else records
        shown = without_images(records) if self.blind_student else resized
        student = self._student.encode(shown, ids, length)
        teachers = {}
        for name, side in self._sides.items():
            if side.equals_student() and not self.blind_student:
                teachers[name] = student
            else:
                own = resized if name in sharing else records
                with of_teacher(name):
                    teachers[name] = side.encoder.encode(own, ids, length)
        return student, teachers

    def _sharing_images(self):
        """The names of the teachers that take the student's arrays of the images.

        Those that take images, where all of them make the same arrays as the student.
        """
        forms = {name: s.encoder.image_form() for name, s in self._sides.items()}
        forms = {name: form for name, form in forms.items() if form is not None}
        alike = all(form == self._student.image_form() for form in forms.values())
        return set(forms) if alike else set()

    def _with_resized_images(self, records):
        """The records with images in the size of the student."""
        family = format_of(self.student_preprocessor)
        images = family.resized_images(records["images"])
        return CheckedRecords({**records, "images": images}, records.names)


def _expect_flags(cross_tokenizer, teacher_preprocessor):
    """`cross_tokenizer`, if it is a bool, or a dict with one for each teacher."""
    several = isinstance(teacher_preprocessor, dict)
    flags = by_teacher(cross_tokenizer)
    named = not isinstance(cross_tokenizer, dict) or (
        several and set(flags) == set(teacher_preprocessor)
    )
    if not named or not all(isinstance(flag, bool) for flag in flags.values()):
        names = list(teacher_preprocessor) if several else "there is one teacher"
        raise ValueError(
            "`cross_tokenizer` must be `True` or `False`, or of several teachers a "
            f"dict with one for each: {names}. Received: "
            f"cross_tokenizer={cross_tokenizer!r}"
        )
    return cross_tokenizer


def _expect_count(name, value, least):
    """Raises a `ValueError` unless an argument is `None` or a large enough integer."""
    is_count = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if value is not None and not (is_count and value >= least):
        raise ValueError(
            f"`{name}` must be an integer, at least {least}. Received: {name}={value!r}"
        )


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
