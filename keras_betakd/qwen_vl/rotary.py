"""Rotary positions of three axes: time, row and column (M-RoPE)."""

import keras
import numpy as np
from keras import ops

from keras_betakd.vision_language.patch_grid import rotated


def rotary_axes(sections, interleaved):
    """The axis (0 time, 1 row, 2 column) by which each rotary pair turns: a list.

    Args:
        sections: how many pairs each of the three axes has.
        interleaved: whether the axes take turns (Qwen3-VL: 0 1 2 0 1 2 ... 0 0); else
            one section follows another.

    Example:

    >>> rotary_axes((2, 1, 1), interleaved=False), rotary_axes((2, 1, 1), True)
    ([0, 0, 1, 2], [0, 1, 2, 0])
    """
    if not interleaved:
        return [axis for axis, size in enumerate(sections) for _ in range(size)]
    return [
        pair % 3 if pair < 3 * sections[pair % 3] else 0
        for pair in range(sum(sections))
    ]


class RotaryAngles(keras.layers.Layer):
    """Cosine and sine of the rotary angles of positions with three axes.

    Pair j = 0 ... d / 2 - 1 of a head turns by position[axis(j)] * wavelength^(-2j/d).

    Args:
        head_dim: int, d.
        sections: three ints, pairs of each axis; their sum is d / 2.
        interleaved: as for `rotary_axes`.
        max_wavelength: the base of the frequencies.
        **kwargs: as for any layer.

    Call arguments:
        position_ids: int (B, 3, T).

    Returns:
        Two float32 arrays, (B, T, 1, d).
    """

    def __init__(self, head_dim, sections, interleaved, max_wavelength, **kwargs):
        super().__init__(autocast=False, **kwargs)
        if len(sections) != 3 or 2 * sum(sections) != head_dim:
            raise ValueError(
                "`rope_sections` must be three numbers of pairs that add up to half of "
                f"`head_dim`, {head_dim}. Received: rope_sections={tuple(sections)}"
            )
        self.head_dim = head_dim
        self.sections = tuple(sections)
        self.interleaved = interleaved
        self.max_wavelength = max_wavelength
        pairs = np.arange(head_dim // 2, dtype="float64")
        self._frequencies = (max_wavelength ** (-2 * pairs / head_dim)).astype(
            "float32"
        )
        self._axes = np.array(rotary_axes(sections, interleaved), "int32")

    def build(self, input_shape):
        self.built = True

    def call(self, position_ids):
        by_axis = ops.transpose(ops.cast(position_ids, "float32"), (0, 2, 1))
        frequencies = ops.convert_to_tensor(self._frequencies)
        axes = ops.convert_to_tensor(self._axes)
        angles = ops.take(by_axis, axes, axis=-1) * frequencies
        angles = ops.concatenate([angles, angles], axis=-1)[:, :, None]
        return ops.cos(angles), ops.sin(angles)

    def compute_output_spec(self, position_ids):
        shape = (position_ids.shape[0], position_ids.shape[2], 1, self.head_dim)
        return tuple(keras.KerasTensor(shape, "float32") for _ in range(2))

    def get_config(self):
        names = "head_dim sections interleaved max_wavelength"
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in names.split()},
        }


class Rotation(keras.layers.Layer):
    """Rotates queries or keys, (B, T, heads, d), by the angles of `RotaryAngles`."""

    def build(self, input_shape):
        self.built = True

    def call(self, x, cosine, sine):
        return rotated(x, cosine, sine)
