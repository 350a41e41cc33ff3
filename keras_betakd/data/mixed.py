"""Batches of records of several sources, each with a share of every epoch."""

import dataclasses
import math
import numbers
from collections.abc import Mapping, Sequence

import numpy as np

from keras_betakd.data.batches import expect_positive
from keras_betakd.data.columns import as_llava_record
from keras_betakd.data.llava import LlavaDataset
from keras_betakd.data.streams import RecordStream


class MixedDataset(LlavaDataset):
    """Shuffled batches of several sources of records, each with its share.

    An epoch holds of each source as many records as its share of `epoch_size` says,
    in random order. A source goes on in the next epoch where it stopped, so none of
    its records comes again before all of them have come; a source whose share is
    larger than it is starts again within an epoch, in another order.

    What an epoch holds depends only on `seed` and its number, as in `LlavaDataset`: a
    training that is resumed sees the records of one that was never interrupted.

    Args:
        sources: Names, and the records of each: what loaders return, or parts of it
            (`records[:1000]`). The names stand in front of the ids, "name/id".
        batch_size: Records in a batch; the last of an epoch may be smaller.
        shares: For each name a positive number; they need not add up to 1. `None` for
            the number of its records, which makes an epoch one pass over all.
        epoch_size: The number of records of an epoch; `None` for that of all sources.
        seed: Seed of the order, 0 or more.
        group_by_modality: As for `LlavaDataset`.
        **kwargs: `workers`, `use_multiprocessing` and `max_queue_size` of
            `keras.utils.PyDataset`.

    Raises:
        ValueError: There is no source, or one without records; `shares` has other names
            or a number that is not positive; or a source's share is no record.
        TypeError: A source is a stream, or no sequence of records.

    Example:

    >>> from keras_betakd.data import LlavaRecord
    >>> cats = [LlavaRecord(str(n), ["?"], ["cat"]) for n in range(10)]
    >>> dogs = [LlavaRecord(str(n), ["?"], ["dog"]) for n in range(1000)]
    >>> dataset = MixedDataset(
    ...     {"cats": cats, "dogs": dogs},
    ...     batch_size=8,
    ...     shares={"cats": 0.25, "dogs": 0.75},
    ...     epoch_size=16,
    ... )
    >>> sorted(name for i in range(2) for name in dataset[i]["responses"])[:5]
    ['cat', 'cat', 'cat', 'cat', 'dog']
    """

    def __init__(
        self,
        sources: Mapping[str, Sequence],
        batch_size: int,
        shares: Mapping[str, float] | None = None,
        epoch_size: int | None = None,
        seed: int = 0,
        group_by_modality: bool = False,
        **kwargs,
    ):
        _expect_sources(sources)
        self._sizes = [len(records) for records in sources.values()]
        shares = dict(zip(sources, self._sizes, strict=True)) if not shares else shares
        _expect_shares(sources, shares)
        if epoch_size is None:
            epoch_size = sum(self._sizes)
        expect_positive("epoch_size", epoch_size)
        self._counts = _divided(epoch_size, [shares[name] for name in sources])
        for name, count in zip(sources, self._counts, strict=True):
            if count == 0:
                raise ValueError(
                    f"The share of {name!r} in an epoch is no record: give it a larger "
                    f"one, or a larger epoch. Received: shares={dict(shares)}, "
                    f"epoch_size={epoch_size}"
                )
        records = [
            dataclasses.replace(record, id=f"{name}/{record.id}")
            for name, source in sources.items()
            for record in map(as_llava_record, source)
        ]
        super().__init__(records, batch_size, True, seed, group_by_modality, **kwargs)

    def drawn(self) -> np.ndarray:
        """Returns the indices of the records of the present epoch."""
        drawn, start = [], 0
        pairs = zip(self._sizes, self._counts, strict=True)
        for number, (size, count) in enumerate(pairs):
            first = self.epoch * count
            drawn.append(start + self._taken(number, size, first, first + count))
            start += size
        return np.concatenate(drawn)

    def _taken(self, number, size, first, end):
        """The records `first` to `end` of the endless order of a source."""
        passes = []
        for lap in range(first // size, math.ceil(end / size)):
            order = np.random.default_rng((self.seed, number, lap)).permutation(size)
            passes.append(order[max(first - lap * size, 0) : end - lap * size])
        return np.concatenate(passes)


def _expect_sources(sources):
    if not isinstance(sources, Mapping) or not sources:
        raise ValueError(
            "`sources` must be a dict of names and records, at least one. Received: "
            f"{type(sources).__name__}"
        )
    for name, records in sources.items():
        if isinstance(records, RecordStream):
            raise TypeError(
                f"The source {name!r} is a stream, of which no share can be taken: its "
                "size is unknown. Load it as records, or train on it by itself."
            )
        if not isinstance(records, Sequence) or isinstance(records, (str, bytes)):
            raise TypeError(
                f"The source {name!r} must be the records of a loader. Received: "
                f"{type(records).__name__}"
            )
        if not len(records):
            raise ValueError(f"The source {name!r} has no records.")


def _expect_shares(sources, shares):
    if set(shares) != set(sources):
        raise ValueError(
            "`shares` must have a number for each source. Received: shares of "
            f"{sorted(shares)}, sources {sorted(sources)}"
        )
    for name, share in shares.items():
        is_number = isinstance(share, numbers.Real) and not isinstance(share, bool)
        if not is_number or not math.isfinite(share) or share <= 0:
            raise ValueError(
                "A share must be a positive number; leave a source out for none. "
                f"Received: {share!r} for {name!r}"
            )


def _divided(total, shares):
    """Divides `total` by shares into whole numbers, the largest remainders first."""
    exact = np.array(shares, "float64") / sum(shares) * total
    counts = np.floor(exact).astype(int)
    rest = np.argsort(counts - exact, kind="stable")[: total - counts.sum()]
    counts[rest] += 1
    return counts.tolist()
