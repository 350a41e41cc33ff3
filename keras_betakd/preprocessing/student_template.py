"""Notes on the student's preprocessor which prompt template it is trained with."""

import warnings

from keras_betakd.preprocessing.prompt_templates import (
    as_template,
    remember_template,
    remembered_template,
    template_label,
)


def remember_for_student(teachers, student, given, found):
    """Notes the template that a student is trained with, if its user named one.

    Where it is evaluated or saved, it is prompted as in training. A function cannot be
    saved, so that nothing is better than an earlier template's name.

    Args:
        teachers: dict of the teachers' preprocessors by their names.
        student: the student's.
        given, found: dicts by these names and "student", of what `by_role` and of what
            `resolved_template` returned.

    Raises:
        ValueError: a teacher and the student share the preprocessor, which has one
            note, and have different templates.
    """
    if given["student"] == "auto":
        return
    for name, teacher in teachers.items():
        if teacher is student:
            _expect_one_template(student, name, found)
    remember_template(student, None if callable(given["student"]) else given["student"])


def _expect_one_template(preprocessor, teacher, found):
    """Raises or warns where the student's template is not that of the teacher."""
    own = "Give the student its own: `student.preprocessor = copy.copy(preprocessor)`."
    if found[teacher] != found["student"]:
        names = {role: template_label(template) for role, template in found.items()}
        raise ValueError(
            "Teacher and student share one preprocessor object, which can remember "
            "only one prompt template for both, so that one of them would be "
            f"evaluated and saved with that of the other. {own} Received: {names}"
        )
    known = as_template(remembered_template(preprocessor))
    if known is None or known == found["student"]:
        return
    warnings.warn(
        "Teacher and student share one preprocessor object, which remembered the "
        f"prompt template {template_label(known)!r} and now remembers "
        f"{template_label(found['student'])!r} for both: the teacher alone is prompted "
        f"with it from now on, too. To leave the teacher's as it was: {own}",
        stacklevel=6,
    )
