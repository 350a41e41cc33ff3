"""What of a distiller trains: the parameters of its parts."""

import math
import re
import sys

LINE = "{:<34} {:>15} {:>15} {:>10}"


class PartSummary:
    """The part of the distiller that says what it is made of.

    Mixed into `BetaKDDistiller`, in front of `keras.Model`.
    """

    def summary(self, print_fn=None):
        """Shows parameters, how many of them train, and memory, part by part.

        The layers of one model are shown by `distiller.student.summary()`.

        Args:
            print_fn: takes each line; defaults to writing it to the standard output.
        """
        write = print_fn or (lambda line: sys.stdout.write(line + "\n"))
        write(LINE.format("Part", "Parameters", "Trainable", "MB"))
        write("=" * len(LINE.format("", "", "", "")))
        for name, variables in self._parts().items():
            write(_line(name, variables))
        write("=" * len(LINE.format("", "", "", "")))
        everything = [v for part in self._parts().values() for v in part]
        write(_line("total", everything))

    def _parts(self):
        """Variables by part, each once."""
        view, student = self.student_view, self.student.variables
        parts = {"teacher": self.teacher.variables}
        tower = [v for layer in view.vision_tower() for v in layer.variables]
        projector = [v for layer in view.projector() for v in layer.variables]
        if tower or projector:
            parts["student: vision tower"] = tower
            parts["student: projector"] = projector
            seen = {id(v) for v in tower + projector}
            rest = [v for v in student if id(v) not in seen]
            parts["student: language model"] = rest
        else:
            parts["student"] = student
        for name, beta in self._all_betas().items():
            parts[f"beta of {name}"] = beta.variables
        counted = {id(v) for part in parts.values() for v in part}
        counted |= {id(v) for v in self.faults.variables}  # no parameters
        rest = [v for v in self.weights if id(v) not in counted]
        return {**parts, "energies": rest} if rest else parts


def _line(name, variables):
    sizes = [math.prod(v.shape) for v in variables]
    pairs = list(zip(variables, sizes, strict=True))
    trainable = sum(size for v, size in pairs if v.trainable)
    megabytes = bytes_of(variables) / 1e6
    return LINE.format(name, f"{sum(sizes):,}", f"{trainable:,}", f"{megabytes:,.1f}")


def bytes_of(variables):
    """How many bytes the values of these variables take."""
    return sum(math.prod(v.shape) * _bits(v.dtype) for v in variables) // 8


def _bits(dtype):
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8  # bool
