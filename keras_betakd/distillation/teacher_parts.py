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
    """

    name: str
    view: ModelView
    energies: dict
    comparison: FeatureComparison
    tower: SharedTower

    def of_batch(self, inputs):
        """The batch's `x` as that of a distiller with this teacher alone."""
        if self.name == ONE_TEACHER:
            return inputs
        own = {}
        for key in _OWN_KEYS:
            value = inputs.get(key)
            if isinstance(value, dict) and self.name in value:
                own[key] = value[self.name]
            elif key != "aligned" and value is not None:
                own[key] = value  # the same for all teachers
        rest = {key: value for key, value in inputs.items() if key not in _OWN_KEYS}
        return rest | own


def teacher_part(name, view, student_view, energies, betas):
    """The `TeacherPart` of a teacher.

    Args:
        name: that of the teacher.
        view, student_view: the `ModelView`s of both.
        energies: dict of its energies.
        betas: dict of all betas.
    """
    own = {k: betas[k] for k in energies}
    comparison = FeatureComparison(energies, own, student_view, view)
    return TeacherPart(
        name, view, energies, comparison, SharedTower(student_view, view)
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
    if isinstance(energies, (list, tuple)) and len(energies) == len(teachers):
        energies = dict(zip(teachers, energies, strict=True))
    if not isinstance(energies, dict) or set(energies) != set(teachers):
        raise ValueError(
            f"With several teachers, `energies` must be one energy for all, or a dict "
            f"with their names {teachers} (or a list in their order): for each an "
            f"energy, or a list or dict of energies. Received: energies={energies}"
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
    if isinstance(beta, (list, tuple)) and len(beta) == len(teachers):
        beta = dict(zip(teachers, beta, strict=True))
    if not isinstance(beta, dict) or set(beta) not in (set(teachers), set(names)):
        raise ValueError(
            f"With several teachers, `beta` must be one layer for all, or a dict with "
            f"their names {teachers} (or a list in their order): for each what a "
            "distiller with this teacher alone would take; or a dict with the names "
            f"of all energies, {names}. Received: beta={beta}"
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
