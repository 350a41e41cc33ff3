"""The summary of a distiller: a table of the parameters of its parts."""

import math
import re

from keras_betakd.distillation.teacher_group import members_of
from keras_betakd.preprocessing.teacher_sides import ONE_TEACHER

_NUMBERS = " {:>15} {:>15} {:>10}"
LINE_LENGTH = 77


def parts_of(distiller):
    """The distiller's variables by part, each in one part only: dict of lists."""
    view, student = distiller.student_view, distiller.student.variables
    tower = [v for layer in view.vision_tower() for v in layer.variables]
    shared = {id(v) for v in tower} & {id(v) for v in distiller.teacher.variables}
    parts = {
        name if name == ONE_TEACHER else f"teacher: {name}": [
            v for v in teacher.variables if id(v) not in shared
        ]
        for name, teacher in members_of(distiller.teacher).items()
    }
    if shared:
        parts["vision tower of both"] = tower
        student = [v for v in student if id(v) not in shared]
        tower = []
    projector = [v for layer in view.projector() for v in layer.variables]
    if tower:
        parts["student: vision tower"] = tower
    if tower or projector:
        parts["student: projector"] = projector
        seen = {id(v) for v in tower + projector}
        rest = [v for v in student if id(v) not in seen]
        parts["student: language model"] = rest
    else:
        parts["student"] = student
    for name, beta in distiller.all_betas().items():
        parts[f"beta of {name}"] = beta.variables
    counted = {id(v) for part in parts.values() for v in part}
    counted |= {id(v) for v in distiller.faults.variables}  # no parameters
    rest = [v for v in distiller.weights if id(v) not in counted]
    return {**parts, "energies": rest} if rest else parts


def parameter_table(parts, line_length=LINE_LENGTH):
    """The lines of a table: parameters, how many of them train, and memory by part.

    Args:
        parts: dict of lists of variables, as `parts_of` gives it.
        line_length: characters of a line.
    """
    width = max(0, line_length - len(_NUMBERS.format("", "", "")))
    line = f"{{:<{width}}}{_NUMBERS}"
    rule = "=" * line_length
    everything = [v for part in parts.values() for v in part]
    return [
        line.format("Part", "Parameters", "Trainable", "MB"),
        rule,
        *(line.format(name, *_sizes(part)) for name, part in parts.items()),
        rule,
        line.format("total", *_sizes(everything)),
    ]


def _sizes(variables):
    sizes = [math.prod(v.shape) for v in variables]
    pairs = list(zip(variables, sizes, strict=True))
    trainable = sum(size for v, size in pairs if v.trainable)
    megabytes = bytes_of(variables) / 1e6
    return f"{sum(sizes):,}", f"{trainable:,}", f"{megabytes:,.1f}"


def bytes_of(variables):
    """How many bytes the values of these variables take."""
    return bytes_of_arrays((v.shape, v.dtype) for v in variables)


def bytes_of_arrays(arrays):
    """How many bytes arrays take, of which shapes and names of dtypes are given."""
    return sum(math.prod(shape) * _bits(dtype) for shape, dtype in arrays) // 8


def _bits(dtype):
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8  # bool
