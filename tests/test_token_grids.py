"""Image tokens of images of any size, on the grid of another model."""

import numpy as np
import pytest
from keras import ops

from keras_betakd.distillation.token_grids import resized, token_counts, token_mask


def filled(grids, slots, rng, padding=0.0):
    """Tokens (B, P, T, 3) of images with these grids, padded with a value."""
    tokens = np.full((*grids.shape[:2], slots, 3), padding, "float32")
    for i, j in np.ndindex(*grids.shape[:2]):
        count = grids[i, j].prod()
        tokens[i, j, :count] = rng.normal(size=(count, 3))
    return tokens


def one_by_one(tokens, grids, new_grids):
    """What Keras' own resizing makes of each image."""
    found = []
    for i, j in np.ndindex(*grids.shape[:2]):
        rows, columns = grids[i, j]
        image = tokens[i, j, : rows * columns].reshape(1, rows, columns, 3)
        size = tuple(int(n) for n in new_grids[i, j])
        image = ops.image.resize(
            image, size, antialias=True, data_format="channels_last"
        )
        found.append(ops.convert_to_numpy(image).reshape(-1, 3))
    return found


@pytest.mark.backends
@pytest.mark.parametrize("padding", [0.0, 1e6])
def test_resizing_is_that_of_each_image_alone(padding):
    rng = np.random.default_rng(0)
    grids = np.array([[(2, 3), (4, 4)], [(1, 6), (5, 2)]])
    new = np.array([[(3, 5), (2, 2)], [(2, 3), (5, 2)]])
    tokens = filled(grids, 18, rng, padding)
    got = ops.convert_to_numpy(
        resized(ops.convert_to_tensor(tokens), 16, ops.array(grids), ops.array(new))
    )
    expected = one_by_one(tokens, grids, new)
    for image, (i, j) in zip(expected, np.ndindex(2, 2), strict=True):
        count = new[i, j].prod()
        np.testing.assert_allclose(got[i, j, :count], image, rtol=1e-4, atol=1e-5)


@pytest.mark.backends
def test_between_a_fixed_square_grid_and_any_grid():
    rng = np.random.default_rng(1)
    grids, square = np.array([[(2, 3)], [(4, 1)]]), np.full((2, 1, 2), 3)
    some, fixed = filled(grids, 8, rng), filled(square, 9, rng)
    to_square = resized(ops.convert_to_tensor(some), 9, ops.array(grids), None)
    to_some = resized(ops.convert_to_tensor(fixed), 8, None, ops.array(grids))
    for got, expected, sizes in (
        (to_square, one_by_one(some, grids, square), square),
        (to_some, one_by_one(fixed, square, grids), grids),
    ):
        got = ops.convert_to_numpy(got)
        for i, image in enumerate(expected):
            count = sizes[i, 0].prod()
            np.testing.assert_allclose(got[i, 0, :count], image, rtol=1e-4, atol=1e-5)


def test_equal_grids_give_the_tokens_themselves():
    grids = np.array([[(2, 3), (3, 1)]])
    tokens = filled(grids, 7, np.random.default_rng(2))
    tokens = ops.convert_to_tensor(tokens)
    got = resized(tokens, 7, ops.array(grids), ops.array(grids))
    real = ops.convert_to_numpy(token_mask(ops.array(grids), tokens))
    got, tokens = ops.convert_to_numpy(got), ops.convert_to_numpy(tokens)
    np.testing.assert_array_equal(got[real], tokens[real])
    assert real.sum(axis=-1).tolist() == [[6, 3]]
    counts = token_counts(ops.array(grids), tokens)
    assert ops.convert_to_numpy(counts).tolist() == [[6.0, 3.0]]


def test_a_fixed_grid_that_is_not_square_is_refused():
    grids = ops.array([[(2, 3)]])
    with pytest.raises(ValueError, match='align="pool".*6 tokens'):
        resized(ops.zeros((1, 1, 6, 2)), 4, None, grids)
