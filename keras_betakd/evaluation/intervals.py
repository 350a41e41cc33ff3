"""95 % confidence intervals of accuracies and means."""

import dataclasses
import math
import statistics
from collections.abc import Hashable, Iterable, Sequence

Z_95 = statistics.NormalDist().inv_cdf(0.975)
"""The 97.5 % quantile of the standard normal distribution, 1.96."""


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson, 1927).

    With p = `successes` / `n` and z = 1.96, the ends are

        (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    It stays within 0..1 and is meaningful for small `n` and for proportions of 0 and 1,
    where the normal approximation collapses to a point.

    Args:
        successes: The number of successes.
        n: The number of trials.

    Returns:
        The lower and the upper end, as fractions in 0..1.

    Raises:
        ValueError: `n` is not positive, or `successes` not in 0..`n`.

    Example:

    >>> [round(end, 4) for end in wilson_interval(8, 10)]
    [0.4902, 0.9433]
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(
            "A proportion needs 0 <= successes <= n and n >= 1. "
            f"Received: successes={successes}, n={n}"
        )
    p, z = successes / n, Z_95
    center = p + z**2 / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = (center - half) / (1 + z**2 / n), (center + half) / (1 + z**2 / n)
    return min(max(low, 0.0), p), max(min(high, 1.0), p)


def standard_error(values: Sequence[float]) -> float | None:
    """The standard error of a mean: the sample's standard deviation over sqrt(n).

    Args:
        values: One value per example.

    Returns:
        The standard error, in the values' unit; `None` for fewer than two values.

    Example:

    >>> standard_error([0.0, 1.0])
    0.5
    """
    if len(values) < 2:
        return None
    return statistics.stdev(values) / math.sqrt(len(values))


def mean_interval(
    values: Sequence[float], low: float = 0.0, high: float = 1.0
) -> tuple[float, float] | None:
    """The 95 % interval of a mean of scores, by the normal approximation.

    The interval is mean -+ 1.96 s / sqrt(n), with n the number of values and s their
    sample standard deviation (n - 1), clipped to the range that a score can have. Equal
    values give an interval of width zero.

    Args:
        values: One score per example.
        low: The smallest possible score.
        high: The largest possible score.

    Returns:
        The lower and the upper end, in the scores' unit; `None` for fewer than two
        values.

    Example:

    >>> [round(end, 4) for end in mean_interval([0.3, 0.6, 0.6, 0.9])]
    [0.36, 0.84]
    """
    error = standard_error(values)
    if error is None:
        return None
    mean = statistics.fmean(values)
    return max(mean - Z_95 * error, low), min(mean + Z_95 * error, high)


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """An accuracy: the number of right answers, and that of questions.

    Args:
        correct: Questions answered rightly.
        n: Questions.

    Raises:
        ValueError: There is no question, or `correct` is not in 0..`n`.

    Example:

    >>> Accuracy(correct=3, n=4).percent
    75.0
    """

    correct: int
    n: int

    def __post_init__(self):
        wilson_interval(self.correct, self.n)  # Raises if there is no such accuracy.

    @property
    def percent(self) -> float:
        """Right answers in per cent."""
        return 100.0 * self.correct / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval in per cent (`wilson_interval`)."""
        low, high = wilson_interval(self.correct, self.n)
        return 100.0 * low, 100.0 * high


def accuracies(outcomes: Iterable[tuple[Hashable, bool]]) -> dict[Hashable, Accuracy]:
    """The accuracy in each category; categories in the order of first occurrence.

    Args:
        outcomes: For each question its category and whether it was answered rightly.

    Returns:
        An `Accuracy` by category.

    Example:

    >>> accuracies([("color", True), ("color", False)])
    {'color': Accuracy(correct=1, n=2)}
    """
    rights: dict[Hashable, list[bool]] = {}
    for category, right in outcomes:
        rights.setdefault(category, []).append(right)
    return {name: Accuracy(sum(flags), len(flags)) for name, flags in rights.items()}
