"""Where the patches of padded images stand, computed inside a step of static shape."""

import math
from typing import Any, NamedTuple

from keras import ops


class Windows(NamedTuple):
    """Square windows of patches, each with as many places.

    A tuple, for layers take nests of tensors alone.

    Attributes:
        sources: int (N, W * s^2), the number of the patch at each place of each of W
            windows of s x s places; any number at places that are not occupied.
        targets: int (N, P), the number of the place of each patch.
        mask: bool (N * W, 1, 1, s^2), true at occupied places; all true for a window
            without any, so that no softmax is over nothing.
    """

    sources: Any
    targets: Any
    mask: Any


class PatchGrid:
    """The places of the patches of N images, each padded to P patches.

    Patches stand in the order of the published preprocessing: blocks of m x m patches,
    which become one token, row by row, and in a block its patches row by row.

    Args:
        grids: int (N, 3), (1, H, W) patches; (0, 0, 0) where there is no image.
        patches: P; the first H * W patches of an image are real.
        merge: m, patches merged to a token along each axis.

    Attributes:
        rows, columns: int (N, P), the place of each patch in its image.
        real: bool (N, P), false for padding.
        mask: bool (N, 1, 1, P), which patches may be attended to: the real ones, all
            where there is no image.

    Example:

    >>> grid = PatchGrid(ops.array([[1, 4, 6]]), 24, merge=2)
    >>> ops.convert_to_numpy(grid.rows)[0, :8].tolist()
    [0, 0, 1, 1, 0, 0, 1, 1]
    """

    def __init__(self, grids, patches, merge):
        grids = ops.cast(grids, "int32")
        self.height, self.width = grids[:, 1:2], grids[:, 2:3]
        self._patches, self._merge = patches, merge
        number = ops.arange(patches, dtype="int32")[None]
        block, inside = number // merge**2, number % merge**2
        self.rows = block // self._across * merge + inside // merge
        self.columns = block % self._across * merge + inside % merge
        self.real = number < self.height * self.width
        self.mask = ops.logical_or(self.real, self._empty)[:, None, None]

    @property
    def _across(self):
        """The number of blocks in a row, (N, 1); 1 where there is no image."""
        return ops.maximum(self.width // self._merge, 1)

    @property
    def _empty(self):
        return ops.equal(self.height * self.width, 0)

    def rotation(self, head_dim, wavelength=10000):
        """Cosine and sine of the rotary angles of two axes: (N, P, 1, head_dim) each.

        With f_j = wavelength^(-4 j / head_dim), j = 0 ... head_dim / 4 - 1, the angles
        are row * f_j, then column * f_j, and all of them once more.
        """
        width = head_dim // 2
        exponents = ops.arange(0, width, 2, dtype="float32") / width
        frequencies = ops.exp(-math.log(wavelength) * exponents)
        places = ops.cast(ops.stack([self.rows, self.columns], axis=-1), "float32")
        angles = ops.expand_dims(places, -1) * frequencies
        angles = ops.reshape(angles, (-1, self._patches, width))
        angles = ops.concatenate([angles, angles], axis=-1)[:, :, None]
        return ops.cos(angles), ops.sin(angles)

    def interpolation(self, side):
        """Where a side x side table is read for each patch, bilinear, corners aligned.

        Returns:
            Four pairs of the numbers of table entries, int (N, P), and of their weights
            (N, P), which add up to 1.
        """
        down = _neighbours(self.rows, self.height, side)
        right = _neighbours(self.columns, self.width, side)
        return [
            (row * side + column, row_share * column_share)
            for row, row_share in down
            for column, column_share in right
        ]

    def windows(self, side):
        """The `Windows` of side x side patches, laid from the upper left corner.

        An image of H x W patches has ceil(H / side) * ceil(W / side) of them, at most
        W = ceil(P / (m * side)).
        """
        merge, patches = self._merge, self._patches
        count = (patches + merge * side - 1) // (merge * side)
        across = ops.maximum((self.width + side - 1) // side, 1)
        number = ops.arange(count * side**2, dtype="int32")[None]
        window, place = number // side**2, number % side**2
        rows = window // across * side + place // side
        columns = window % across * side + place % side
        occupied = ops.logical_and(rows < self.height, columns < self.width)
        block = rows // merge * self._across + columns // merge
        sources = block * merge**2 + rows % merge * merge + columns % merge
        sources = ops.where(occupied, sources, 0)
        targets = self.rows // side * across + self.columns // side
        places = self.rows % side * side + self.columns % side
        targets = ops.where(self.real, targets * side**2 + places, 0)
        mask = ops.reshape(occupied, (-1, side**2))
        mask = ops.logical_or(mask, ops.logical_not(ops.any(mask, -1, keepdims=True)))
        return Windows(sources, targets, mask[:, None, None])


def _neighbours(numbers, count, side):
    """The two nearest of `side` table entries, each with its interpolation weight."""
    step = (side - 1) / ops.cast(ops.maximum(count - 1, 1), "float32")
    place = ops.minimum(ops.cast(numbers, "float32") * step, float(side - 1))
    lower = ops.floor(place)
    share = place - lower
    lower = ops.cast(lower, "int32")
    return (lower, 1 - share), (ops.minimum(lower + 1, side - 1), share)


def rotated(x, cosine, sine):
    """Rotates pairs of the last axis, j with j + half: x cos + (-second, first) sin."""
    first, second = ops.split(x, 2, axis=-1)
    return x * cosine + ops.concatenate([-second, first], axis=-1) * sine
