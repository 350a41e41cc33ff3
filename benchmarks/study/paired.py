"""Means, spreads and paired differences of runs, with intervals."""

import dataclasses
import statistics

from scipy import stats


@dataclasses.dataclass(frozen=True)
class Difference:
    """The mean of paired differences, and its 95 % interval (Student's t)."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self):
        return f"{self.mean:+.1f} ({self.low:+.1f} to {self.high:+.1f})"


def spread(values):
    """Mean and standard deviation (n - 1); 0 for one value."""
    values = list(values)
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return statistics.fmean(values), deviation


def mean_with_interval(values):
    """A mean and its 95 % interval (Student's t), as a `Difference` from 0."""
    return paired_difference(
        dict(enumerate(values)), dict.fromkeys(range(len(values)), 0.0)
    )


def paired_difference(ours, theirs):
    """`ours` minus `theirs` over the keys that both have.

    A key is a seed, or a setting and a seed: both arms have the same start and the same
    order of data there.

    Args:
        ours, theirs: dicts of key to value.

    Raises:
        ValueError: fewer than two keys in common.
    """
    keys = sorted(set(ours) & set(theirs))
    if len(keys) < 2:
        raise ValueError(
            f"A paired difference needs two runs of each arm. Received: {len(keys)} in "
            "common"
        )
    differences = [ours[key] - theirs[key] for key in keys]
    mean, deviation = spread(differences)
    if deviation == 0:
        return Difference(mean, mean, mean, len(keys))
    found = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
    return Difference(mean, float(found.low), float(found.high), len(keys))
