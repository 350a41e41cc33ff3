"""Draws which records of an epoch the student answers."""

import numbers

import numpy as np

from keras_betakd.on_policy.decoder import hashed_seed


def expect_share(share, epoch=None):
    """Returns a share, or a function that returns one; raises if it is neither.

    Args:
        share: the value.
        epoch: the number of the epoch that a function returned it for.

    Example:

    >>> expect_share(0.5)
    0.5
    """
    is_number = isinstance(share, numbers.Real) and not isinstance(share, bool)
    if (callable(share) and epoch is None) or (is_number and 0 <= share <= 1):
        return share
    where = "" if epoch is None else f" by the function, for epoch {epoch}"
    raise ValueError(
        "`on_policy` must be a share from 0 to 1, or a function of the number of the "
        f"epoch that returns one. Received{where}: on_policy={share!r}"
    )


def drawn_rows(share, sizes, seed, epoch):
    """For each batch of an epoch the rows that the student answers.

    Of N records share * N are drawn. Where that is no whole number, the next smaller or
    the next greater one is drawn as well, as likely as the mean over epochs needs it: a
    small share of a small epoch is not always none.

    Args:
        share: from 0 to 1.
        sizes: list of the numbers of records in the batches.
        seed, epoch: ints that the draw depends on.

    Returns:
        A list of sorted lists of row numbers.

    Example:

    >>> [len(rows) for rows in drawn_rows(1.0, [2, 1], seed=0, epoch=0)]
    [2, 1]
    """
    places = np.repeat(np.arange(len(sizes)), sizes)
    generator = np.random.default_rng(hashed_seed(seed, epoch, "records"))
    # Rounded first: 0.1 * 30 is 3.0000000000000004.
    count = int(np.floor(round(share * len(places), 9) + generator.random()))
    rows, starts = [[] for _ in sizes], np.cumsum([0, *sizes])
    for place in np.sort(generator.permutation(len(places))[:count]):
        rows[places[place]].append(int(place - starts[places[place]]))
    return rows
