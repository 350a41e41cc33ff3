"""`Branch`: a given answer with one token of the student's, and what such are like."""

import dataclasses

_NAN = float("nan")
# Which values are better, for callbacks that monitor them.
DIRECTIONS: dict[str, str | None] = {
    "branches": None,
    "branches_given": None,
    "unbranched": None,
}


@dataclasses.dataclass(frozen=True)
class Branch:
    """A one-token branch off a given answer.

    Attributes:
        name: the record, by its id if it has one and its place in the data.
        given: the token ids y_1 .. y_K of the given answer, that which ends it
            included.
        place: k, from 1 to K - 1: the number of the token in whose place the student's
            stands.
        token: z, the id of the student's token.
    """

    name: str
    given: tuple
    place: int
    token: int

    @property
    def tokens(self):
        """What both models read: y_1 .. y_{k-1}, z and y_{k+1}.

        The row behind z stands where y_{k+1} would be predicted. It is no label, and no
        row that counts reads it.
        """
        return (*self.given[: self.place - 1], self.token, self.given[self.place])


def report_of(branches, unbranched):
    """What `History` holds of an epoch's branches, by name.

    Args:
        branches: list of `Branch`.
        unbranched: the number of drawn records whose answer has one token.

    Returns:
        Dict of `"branches"`, their number, `"branches_given"`, the share of them whose
        token is the given one, NaN where there are none, and `"unbranched"`.

    Example:

    >>> report_of([Branch("0", (5, 6, 1), 1, 5), Branch("1", (5, 6, 1), 2, 7)], 3)
    {'branches': 2, 'branches_given': 0.5, 'unbranched': 3}
    """
    same = [branch.token == branch.given[branch.place - 1] for branch in branches]
    share = sum(same) / len(same) if same else _NAN
    return {
        "branches": len(branches),
        "branches_given": share,
        "unbranched": unbranched,
    }


def warning_of(branches, unbranched, epoch):
    """A warning of records without a branch; `None` where all have one.

    Args:
        branches, unbranched: as for `report_of`, of one epoch.
        epoch: its number.
    """
    if not unbranched:
        return None
    return (
        f"Of the {len(branches) + unbranched} records drawn to branch off in epoch "
        f"{epoch + 1}, {unbranched} have an answer of one token, behind which there is "
        "no row: they have weight 0 in that epoch. `History` has their number as "
        "`unbranched`. Give a smaller `on_policy`, or data without such records."
    )
