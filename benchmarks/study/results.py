"""Looks up runs by arm, setting and measure, and compares them."""

import collections

from arms import GRID
from paired import mean_with_interval, paired_difference, spread
from settings import SETTINGS
from store import read_runs


def accuracy(run):
    """Per cent of the test questions answered rightly."""
    return run["test"]["accuracy_choices"]


class Results:
    """The runs of a file.

    Args:
        path: the JSON lines.
        seeds: which of them to take; all if `None`.
    """

    def __init__(self, path, seeds=None):
        runs = read_runs(path)
        self.runs = [run for run in runs if seeds is None or run["seed"] in seeds]
        self._found = collections.defaultdict(dict)
        for run in self.runs:
            self._found[run["arm"], run["setting"]][run["seed"]] = run

    def has(self, arm, *settings):
        """Whether an arm has run in these settings; in the study's own if none."""
        return all((arm, name) in self._found for name in settings or SETTINGS)

    def runs_of(self, arm, setting):
        return [run for _, run in sorted(self._found[arm, setting].items())]

    def values(self, arm, settings, read=accuracy):
        """Dict of (setting, seed) to a measure, over one setting or several."""
        settings = [settings] if isinstance(settings, str) else settings
        return {
            (setting, seed): read(run)
            for setting in settings
            for seed, run in self._found[arm, setting].items()
        }

    def mean(self, arm, settings, read=accuracy):
        return spread(self.values(arm, settings, read).values())[0]

    def spread(self, arm, settings, read=accuracy):
        return spread(self.values(arm, settings, read).values())

    def interval(self, arm, setting, read=accuracy):
        """The mean with its interval."""
        return mean_with_interval(list(self.values(arm, setting, read).values()))

    def difference(self, arm, other, settings, read=accuracy):
        """`arm` minus `other`, paired by setting and seed."""
        ours, theirs = (self.values(a, settings, read) for a in (arm, other))
        return paired_difference(ours, theirs)

    def present(self, arms):
        """Those arms that have run in every setting."""
        return [arm for arm in arms if self.has(arm)]

    def best_fixed(self, energy, setting):
        """The fixed beta a grid search takes: the best on the validation questions."""
        arms = [arm for arm in fixed_arms(energy) if self.has(arm, setting)]
        return max(arms, key=lambda arm: self.mean(arm, setting, validation))

    def difference_to_best_fixed(self, arm, energy, settings, read=accuracy):
        """`arm` minus the grid's choice of each setting."""
        settings = [settings] if isinstance(settings, str) else settings
        theirs = {}
        for setting in settings:
            theirs |= self.values(self.best_fixed(energy, setting), setting, read)
        return paired_difference(self.values(arm, settings, read), theirs)


def validation(run):
    return run["validation"]


def fixed_arms(energy):
    return [f"{energy} / fixed, value={value:g}" for value in GRID]
