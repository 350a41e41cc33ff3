"""`TeacherGroup`: several teachers as the one that a distiller has."""

import keras

from keras_betakd.preprocessing.teacher_sides import ONE_TEACHER


@keras.saving.register_keras_serializable(package="keras_betakd")
class TeacherGroup(keras.Model):
    """Holds several teachers by their names; it has no outputs of its own.

    A distiller makes it of a dict or list of teachers.

    Args:
        members: dict of the teachers.

    Attributes:
        members: that dict.
        preprocessor: dict of the members' preprocessors; `None` where one has none.

    Raises:
        ValueError: two members are one object, or share weights.
    """

    def __init__(self, members, name="teachers", **kwargs):
        super().__init__(name=name, **kwargs)
        _expect_own_weights(members)
        self.members = dict(members)
        self.built = all(member.built for member in members.values())

    @property
    def preprocessor(self):
        found = {
            name: getattr(member, "preprocessor", None)
            for name, member in self.members.items()
        }
        return None if None in found.values() else found

    def call(self, inputs):
        raise ValueError(
            "Several teachers have no outputs in common. Call one of them: "
            f"`distiller.teacher.members[name]`, of {list(self.members)}."
        )

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        members = {name: serialize(member) for name, member in self.members.items()}
        return {"name": self.name, "members": members}

    @classmethod
    def from_config(cls, config):
        return cls(**keras.saving.deserialize_keras_object(config))


def _expect_own_weights(members):
    """Raises where a variable is in two members.

    An archive holds each object once, so that the second would be loaded without it.
    """
    owners = {}
    for name, member in members.items():
        for part in (member, *member.weights):
            owner = owners.setdefault(id(part), name)
            if owner != name:
                raise ValueError(
                    "Each teacher needs weights of its own. Load a model that teaches "
                    f"under two names twice. Received: {owner!r} and {name!r} share "
                    f"{getattr(part, 'path', None) or part.name!r}"
                )


def members_of(teacher):
    """Dict of the teachers by their names, of one model or of a `TeacherGroup`."""
    if isinstance(teacher, TeacherGroup):
        return dict(teacher.members)
    return {ONE_TEACHER: teacher}


def numbered_names(count):
    """The names of a list of teachers."""
    return [f"teacher_{i}" for i in range(1, count + 1)]


def resolved_teacher(teacher):
    """The teacher as one model, of a model, or of a dict or list of several.

    Args:
        teacher: as for `BetaKDDistiller`.

    Raises:
        ValueError: not a model, or names that cannot be used.
    """
    if isinstance(teacher, (list, tuple)):
        names = numbered_names(len(teacher))
        teacher = dict(zip(names, teacher, strict=True))
    if not isinstance(teacher, dict):
        return teacher
    wrong = [x for x in teacher.values() if not isinstance(x, keras.Model)]
    if not teacher or wrong:
        raise ValueError(
            "`teacher` must be a model, or a list or dict of models. Received: "
            f"{ {name: type(x).__name__ for name, x in teacher.items()} }"
        )
    for name in teacher:
        is_name = isinstance(name, str) and name and "/" not in name
        if not is_name or name in ("student", ONE_TEACHER):
            raise ValueError(
                "The names of several teachers are parts of the names of metrics: "
                "strings with at least one character and no '/', other than 'teacher' "
                f"and 'student'. Received: {list(teacher)}"
            )
    return TeacherGroup(teacher)
