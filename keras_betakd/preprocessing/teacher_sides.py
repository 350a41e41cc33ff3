"""`TeacherSide`: what one teacher adds to the batches of a distiller."""

import contextlib

import numpy as np

from keras_betakd.preprocessing.chat_template import ChatTemplate
from keras_betakd.preprocessing.checks import RecordsTooLong, check_same_answers
from keras_betakd.preprocessing.encoding import Encoder, ModelEncoder
from keras_betakd.preprocessing.image_formats import format_of
from keras_betakd.preprocessing.prompt_templates import template_label
from keras_betakd.preprocessing.token_alignment import aligned_slots

ONE_TEACHER = "teacher"  # its name, where there is one


def by_teacher(value):
    """A dict by the names of the teachers, of what is given for one or for several."""
    return value if isinstance(value, dict) else {ONE_TEACHER: value}


@contextlib.contextmanager
def of_teacher(name):
    """Within, errors say of which of several teachers they are."""
    try:
        yield
    except RecordsTooLong:  # which says so itself, for each record
        raise
    except ValueError as error:
        if name == ONE_TEACHER:
            raise
        raise ValueError(f"Of the teacher {name!r}: {error}") from error


def encoder_of(preprocessor, role, template, trained_turns):
    """The `Encoder` of a model: its preprocessor, or one made of it.

    Args:
        preprocessor: a keras-hub preprocessor, or an `Encoder`.
        role: the name of the model in errors.
        template: its prompt template.
        trained_turns: `"all"` or `"last"`.
    """
    if isinstance(preprocessor, Encoder):
        return preprocessor
    return ModelEncoder(preprocessor, role, template, trained_turns)


class TeacherSide:
    """Encodes records for one teacher, beside a student.

    Args:
        preprocessor: the teacher's preprocessor, or an `Encoder`.
        student: the student's preprocessor.
        templates: the prompt templates of this teacher and of the student.
        crosses: whether the two have different tokenizers.
        trained_turns: `"all"` or `"last"`.
        name: that of the teacher.
    """

    def __init__(
        self,
        preprocessor,
        student,
        templates,
        crosses=False,
        trained_turns="all",
        name=ONE_TEACHER,
    ):
        role = name if name == ONE_TEACHER else f"teacher {name!r}"
        self.preprocessor = preprocessor
        self.student = student
        self.templates = templates
        self.crosses = crosses
        self.encoder = encoder_of(preprocessor, role, templates[0], trained_turns)
        self._vocabulary_checked = False
        if isinstance(preprocessor, Encoder) and crosses:
            raise ValueError(
                "A cached teacher has the answer tokens of its own tokenizer only. For "
                "different tokenizers (`ULDEnergy`) give the teacher itself."
            )

    def check_vocabulary(self):
        """Raises unless answers are the same tokens for teacher and student.

        Not in the constructor: a model that is being loaded gets its vocabulary after
        it is made.
        """
        if self.crosses or self._vocabulary_checked:
            return
        self.encoder.check_vocabulary(self.student)
        self._expect_same_ends()
        self._vocabulary_checked = True

    def _expect_same_ends(self):
        """Raises where answers end with one mark for one model, with another for one.

        Class by class, all their labels must be equal.
        """
        if isinstance(self.preprocessor, Encoder):
            return
        end = getattr(self.student.tokenizer, "end_token", None)
        ours, theirs = (
            (t.end.strip() if isinstance(t, ChatTemplate) else None) or end
            for t in self.templates
        )
        if ours != theirs:
            roles = zip(("teacher", "student"), self.templates, strict=True)
            names = {role: template_label(template) for role, template in roles}
            raise ValueError(
                f"Answers of the teacher end with {ours!r}, the student's with "
                f"{theirs!r}, by their prompt templates {names}: their labels would "
                "differ. Give one `prompt_template` that both have, or `None`."
            )

    def equals_student(self):
        """Whether the two encode a record alike."""
        is_one = self.preprocessor is self.student
        return is_one and self.templates[0] == self.templates[1]

    def part_of_batch(self, teacher, student, ids, shares_images):
        """What the teacher adds to `x`, by the keys of a batch with one teacher.

        Args:
            teacher, student: the `Encoded` of both.
            ids: B strings that name the records in errors.
            shares_images: whether it takes the student's images.

        Raises:
            ValueError: the two have different answer tokens. The message names the
                record.
        """
        inputs = teacher.inputs
        x = {"teacher": self._without_images(inputs) if shares_images else inputs}
        if self.crosses:
            return x | self._aligned(teacher, student)
        check_same_answers(teacher.labels, student.labels, ids)
        return x | {"teacher_positions": teacher.positions}

    def _without_images(self, inputs):
        """The inputs without images that equal the student's.

        The distiller hands the student's images to a teacher that has none.
        """
        shared = format_of(self.student).image_keys
        return {name: value for name, value in inputs.items() if name not in shared}

    def _aligned(self, teacher, student):
        """The teacher's positions for the student's answer tokens, as a part of `x`."""
        tokenizers = self.encoder.tokenizer, self.student.tokenizer
        positions = np.zeros_like(teacher.positions)
        aligned = np.zeros_like(student.weights)
        for i in range(len(positions)):
            turns = zip(teacher.turns(i), student.turns(i), strict=True)
            for of_teacher, of_student in turns:
                labels = teacher.labels[i][of_teacher], student.labels[i][of_student]
                slots = aligned_slots(*tokenizers, *labels)
                found = of_student[slots >= 0]
                slots = of_teacher[slots[slots >= 0]]
                positions[i, found] = teacher.positions[i, slots]
                aligned[i, found] = 1.0
        return {"teacher_positions": positions, "aligned": aligned}


def joined(parts):
    """The parts of all teachers in one `x`.

    Args:
        parts: dict of the results of `part_of_batch` by the teachers' names.

    Returns:
        The part itself of one teacher that has no name; of several, a dict with each
        key once, and the teachers' values by their names.
    """
    if list(parts) == [ONE_TEACHER]:
        return parts[ONE_TEACHER]
    keys = dict.fromkeys(key for part in parts.values() for key in part)
    return {
        key: {name: part[key] for name, part in parts.items() if key in part}
        for key in keys
    }
