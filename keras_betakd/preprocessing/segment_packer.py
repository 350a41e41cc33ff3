"""`SegmentPacker`: packs prompts and responses in rows of one length."""

import numpy as np


class SegmentPacker:
    """Packs segments of token ids in rows of one length, in the order they come.

    What `keras_hub.layers.MultiSegmentPacker` does, where nothing is cut; as a Keras
    layer it looks at each token id of its lists several times, which takes most of the
    time of a record. A row that is cut ends in its last segment, by which
    `check_lengths` knows it.

    Args:
        sequence_length: the length of the rows.
        start_value: ids before the first segment.
        end_value: ids behind the last one.
        sep_value: ids between two; they belong to the segment before them.
        pad_value: the id that fills a row; 0 if `None`.

    Example:

    >>> packer = SegmentPacker(8, start_value=[1], end_value=[2])
    >>> token_ids, segment_ids = packer(([[7, 8]], [[9]]))
    >>> token_ids.tolist(), segment_ids.tolist()
    ([[1, 7, 8, 9, 2, 0, 0, 0]], [[0, 0, 0, 1, 1, 0, 0, 0]])
    """

    def __init__(
        self, sequence_length, start_value, end_value, sep_value=(), pad_value=0
    ):
        self.sequence_length = sequence_length
        self.start_value = list(start_value)
        self.end_value = list(end_value)
        self.sep_value = list(sep_value)
        self.pad_value = pad_value or 0

    @classmethod
    def like(cls, packer):
        """One that packs as a keras-hub `MultiSegmentPacker` does."""
        names = "start_value", "end_value", "sep_value", "pad_value"
        values = {name: getattr(packer, name) for name in names}
        return cls(packer.sequence_length, **values)

    def __call__(
        self, segments, sequence_length=None, add_start_value=True, add_end_value=True
    ):
        """`(token_ids, segment_ids)`, (B, T) ints each.

        Args:
            segments: tuple of lists of B lists of token ids.
            sequence_length: T; that of the packer if `None`.
            add_start_value, add_end_value: whether rows begin and end with these.
        """
        shape = len(segments[0]), sequence_length or self.sequence_length
        token_ids = np.full(shape, self.pad_value, "int32")
        segment_ids = np.zeros(shape, "int32")
        last = len(segments) - 1
        for row, parts in enumerate(zip(*segments, strict=True)):
            place = self._put(token_ids[row], 0, self.start_value * add_start_value)
            for number, part in enumerate(parts):
                behind = self.end_value * add_end_value
                behind = behind if number == last else self.sep_value
                start = place
                place = self._put(token_ids[row], place, [*part, *behind])
                segment_ids[row, start:place] = number
            if place > shape[1]:
                segment_ids[row, -1] = last
        return token_ids, segment_ids

    @staticmethod
    def _put(row, place, ids):
        """Writes ids from a place on, as far as they fit; returns where they end."""
        fitting = ids[: max(len(row) - place, 0)]
        row[place : place + len(fitting)] = fitting
        return place + len(ids)
