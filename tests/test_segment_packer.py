"""Rows are those of keras-hub's packer, which cuts in silence what does not fit."""

import keras_hub
import numpy as np
import pytest

from keras_betakd.preprocessing.segment_packer import SegmentPacker

OPTIONS = [
    {"start_value": 1, "end_value": 2, "sep_value": []},
    {"start_value": [1, 5], "end_value": [2, 6], "sep_value": [7], "pad_value": 9},
    {"start_value": 1, "end_value": 2},  # which then separates, too
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("add_start", [True, False])
@pytest.mark.parametrize("add_end", [True, False])
def test_rows_are_those_of_keras_hub(options, add_start, add_end):
    rng = np.random.default_rng(0)
    sizes = rng.integers(0, 9, (2, 12))
    segments = tuple([rng.integers(10, 99, n).tolist() for n in row] for row in sizes)
    hub = keras_hub.layers.MultiSegmentPacker(sequence_length=24, **options)
    ours = SegmentPacker.like(hub)
    for length in (None, 30):
        settings = {
            "sequence_length": length,
            "add_start_value": add_start,
            "add_end_value": add_end,
        }
        expected = hub(segments, **settings)
        for found, theirs in zip(ours(segments, **settings), expected, strict=True):
            np.testing.assert_array_equal(found, np.asarray(theirs))
            assert found.dtype == "int32"


@pytest.mark.parametrize("prompt", [6, 9])
def test_a_row_that_is_cut_ends_in_its_last_segment(prompt):
    """Else nothing would be trained of it, and nothing would say that it is full."""
    packer = SegmentPacker(8, start_value=[1], end_value=[2])
    token_ids, segment_ids = packer(([[3] * prompt, [3]], [[4, 4], [4]]))
    assert segment_ids[:, -1].tolist() == [1, 0]  # the second one fits
    assert token_ids[0].tolist() == [1, *[3] * prompt, 4, 4][:8]
