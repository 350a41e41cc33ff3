"""`TeacherPart`: one teacher of a distiller, and the energies that belong to it."""

import dataclasses

from keras_betakd.betas import Beta
from keras_betakd.distillation.arguments import (
    expect_names_apart,
    named_betas,
    named_energies,
)
from keras_betakd.distillation.feature_comparison import FeatureComparison
from keras_betakd.distillation.shared_tower import SharedTower
from keras_betakd.distillation.teacher_group import numbered_names
from keras_betakd.energies.base import Energy
from keras_betakd.models.base import ModelView
from keras_betakd.preprocessing.teacher_sides import ONE_TEACHER

# What of a batch each of several teachers has of its own.
_OWN_KEYS = ("teacher", "teacher_positions", "aligned")


@dataclasses.dataclass(frozen=True)
class TeacherPart:
    """One teacher of a distiller.

    A plain object, which Keras neither tracks nor saves.

    Attributes:
        name: `"teacher"`, or its own where there are several.
        view: its `ModelView`.
        energies: dict of the energies that compare the student with it.
        comparison: the `FeatureComparison` of these energies.
        tower: the `SharedTower` of it and the student.
        names: the names of all teachers.
    """

    name: str
    view: ModelView
    energies: dict
    comparison: FeatureComparison
    tower: SharedTower
    names: list

    def of_batch(self, inputs):
        """The batch's `x` as that of a distiller with this teacher alone.

        Raises:
            ValueError: positions are not given for each of several teachers, or a dict
                has the names of others.
        """
        if self.name == ONE_TEACHER:
            return inputs
        own = {}
        for key in _OWN_KEYS:
            value = inputs.get(key)
            if key == "teacher" and not _is_by_name(value, self.names):
                own[key] = value  # the same for all teachers
            elif value is not None:
                _expect_names(key, value, self.names)
                own |= {key: value[self.name]} if self.name in value else {}
        rest = {key: value for key, value in inputs.items() if key not in _OWN_KEYS}
        return rest | own


def teacher_part(name, view, student_view, energies, betas, names):
    """The `TeacherPart` of a teacher.

    Args:
        name: that of the teacher.
        view, student_view: the `ModelView`s of both.
        energies: dict of its energies.
        betas: dict of all betas.
        names: those of all teachers.
    """
    own = {k: betas[k] for k in energies}
    comparison = FeatureComparison(energies, own, student_view, view)
    return TeacherPart(
        name, view, energies, comparison, SharedTower(student_view, view), names
    )


def _is_by_name(value, names):
    return isinstance(value, dict) and not {*names}.isdisjoint(value)


def _expect_names(key, value, names):
    """Raises unless a part of a batch is a dict by the teachers' names.

    Those that are aligned with another tokenizer may be some of them.
    """
    given = set(value) if isinstance(value, dict) else None
    if given != {*names} and not (key == "aligned" and given and given <= {*names}):
        raise ValueError(
            f"With several teachers, `x[{key!r}]` is a dict with an entry for each: "
            f"{names}. Received: "
            f"{type(value).__name__ if given is None else sorted(map(str, value))}"
        )


def energies_by_teacher(energies, teachers):
    """Dict of the dicts of energies by the teachers' names; energies have full names.

    Args:
        energies: as for `BetaKDDistiller`.
        teachers: the names of the teachers.
    """
    if teachers == [ONE_TEACHER]:
        return {ONE_TEACHER: named_energies(energies)}
    if isinstance(energies, Energy):
        copies = [type(energies).from_config(energies.get_config()) for _ in teachers]
        energies = dict(zip(teachers, [energies, *copies[1:]], strict=True))
    if _is_in_order(energies, teachers):
        energies = dict(zip(teachers, energies, strict=True))
    if not isinstance(energies, dict) or set(energies) != set(teachers):
        raise ValueError(
            "With several teachers, `energies` must be one energy for all, or a dict "
            f"with their names {teachers} (of a list of teachers, a list in its "
            "order): for each an energy, or a list or dict of energies. Received: "
            f"energies={energies}"
        )
    found = {
        teacher: {
            full_name(teacher, name): energy
            for name, energy in named_energies(energies[teacher]).items()
        }
        for teacher in teachers
    }
    flat = [item for own in found.values() for item in own.items()]
    expect_names_apart(flat)
    return found


def _is_in_order(given, teachers):
    """Whether a list has an entry for each of a list of teachers.

    Beside a dict of teachers a list would look like one for each of them all.
    """
    is_list = isinstance(given, (list, tuple)) and len(given) == len(teachers)
    return is_list and teachers == numbered_names(len(teachers))


def full_name(teacher, energy):
    """The name of an energy of one of several teachers."""
    return f"{teacher}_{energy}"


def own_name(teacher, name):
    """The name of an energy without that of its teacher, as its user gave it."""
    return name if teacher == ONE_TEACHER else name.removeprefix(f"{teacher}_")


def betas_by_energy(beta, energies):
    """Dict of the beta layers by the names of all energies.

    Args:
        beta: as for `BetaKDDistiller`.
        energies: what `energies_by_teacher` returned.
    """
    names = [name for own in energies.values() for name in own]
    teachers = list(energies)
    if teachers == [ONE_TEACHER] or beta is None or isinstance(beta, Beta):
        return named_betas(beta, names)
    if _is_in_order(beta, teachers):
        beta = dict(zip(teachers, beta, strict=True))
    if not isinstance(beta, dict) or set(beta) not in (set(teachers), set(names)):
        raise ValueError(
            "With several teachers, `beta` must be one layer for all, or a dict with "
            f"their names {teachers} (of a list of teachers, a list in its order): for "
            "each what a distiller with this teacher alone would take; or a dict with "
            f"the names of all energies, {names}. Received: beta={beta}"
        )
    if set(beta) == set(names):
        return named_betas(beta, names)
    found = {}
    for teacher, own in energies.items():
        given = beta[teacher]
        if isinstance(given, dict):
            given = {full_name(teacher, name): layer for name, layer in given.items()}
        found |= named_betas(given, list(own))
    return named_betas(found, names)  # which also compares those of two teachers
