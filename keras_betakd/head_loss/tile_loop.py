"""Runs over the supervised rows of a batch in tiles, in compiled and eager steps."""

import keras
from keras import ops

from keras_betakd.backends import runs_eagerly
from keras_betakd.distribution.devices import parts_of_batch, spread_by_part


def run_in_tiles(job, data, supervised, tile_rows):
    """What a job computes of the supervised rows, some of them at a time.

    Where a batch is spread over devices, each computes its own rows: tiles of the
    global batch would be computed by all devices.

    Args:
        job: has `block_rows(tile_rows)` and `tile(data, block, sums)`, see `HeadTiles`.
        data: dict of arrays (N, ...), among them `"rows"`.
        supervised: bool (N,); the other rows are zeros in the tiles that have any.
        tile_rows: the number of rows of a tile.

    Returns:
        `(rows, sums, factors)` as `HeadTiles.tile` returns them, for all rows, in their
        order.
    """
    count, parts = ops.shape(data["rows"])[0], parts_of_batch()
    if parts == 1 or count % parts:
        return _run(job, data, supervised, tile_rows)

    def cut(x):
        return spread_by_part(ops.reshape(x, (parts, count // parts, *x.shape[1:])))

    data, supervised = {k: cut(v) for k, v in data.items()}, cut(supervised)
    # The same number of tiles for each device, so that none waits inside the loop.
    most = ops.max(ops.sum(ops.cast(supervised, "int32"), axis=1))
    rows, sums, factors = ops.vectorized_map(
        lambda part: _run(job, *part, tile_rows, most), (data, supervised)
    )
    rows, factors = keras.tree.map_structure(
        lambda x: ops.reshape(x, (-1, *x.shape[2:])), (rows, factors)
    )
    return rows, {k: ops.sum(v, axis=0) for k, v in sums.items()}, factors


def _run(job, data, supervised, tile_rows, most=None):
    """As `HeadTiles.tile`, for all rows, in their order.

    Args:
        most: the number of rows to compute; that of supervised rows if `None`.
    """
    count = ops.shape(data["rows"])[0]
    known = isinstance(count, int)  # TensorFlow may trace without the batch size
    fits = known and count <= tile_rows
    if runs_eagerly() and not fits:
        return _run_chosen(job, data, supervised, tile_rows)
    # A small batch in a tile of full height would be mostly padding.
    height = min(count, tile_rows) if known else ops.clip(count, 1, tile_rows)
    block, height = _whole_blocks(height, job.block_rows(tile_rows))
    if fits:
        data = _cleared(data, supervised)
        part = {k: _padded(v, height) for k, v in data.items()}
        rows, sums, factors = job.tile(part, block, None)
        return {k: v[:count] for k, v in rows.items()}, sums, factors
    most = ops.sum(ops.cast(supervised, "int32")) if most is None else most
    needed = (most + height - 1) // height
    tiles = (count + height - 1) // height
    order = ops.argsort(ops.cast(ops.logical_not(supervised), "int32"))
    data = {k: ops.take(v, order, axis=0) for k, v in data.items()}
    data = _cleared(data, ops.take(supervised, order, axis=0))
    data = {k: _in_tiles(v, tiles, height) for k, v in data.items()}

    def tile(i, sums):
        part = {k: ops.take(v, i, axis=0) for k, v in data.items()}
        return job.tile(part, block, sums)

    def body(i, rows, sums):
        new_rows, sums, _ = tile(i, sums)
        rows = {k: _set_tile(rows[k], i, v) for k, v in new_rows.items()}
        return i + 1, rows, sums

    # The first tile runs before the loop, so that no sum has to start from zeros.
    rows, sums, _ = tile(0, {})
    rows = {k: _padded(ops.expand_dims(v, 0), tiles) for k, v in rows.items()}
    start = ops.convert_to_tensor(1, "int32")
    _, rows, sums = ops.while_loop(lambda i, *_: i < needed, body, (start, rows, sums))
    back = ops.argsort(order)
    flat = {k: ops.reshape(v, (-1, v.shape[-1])) for k, v in rows.items()}
    return {k: ops.take(v, back, 0) for k, v in flat.items()}, sums, {}


def _run_chosen(job, data, supervised, tile_rows):
    """As `_run`, on the supervised rows alone, whose number varies between calls."""
    count, chosen = supervised.shape[0], ops.nonzero(supervised)[0]
    if not chosen.shape[0]:  # a row of zeros gives gradients of zeros
        chosen, data = ops.arange(1), _cleared(data, supervised)
    starts = range(0, chosen.shape[0], tile_rows)
    tiles = [chosen[start : start + tile_rows] for start in starts]
    found, sums, factors = [], None if len(tiles) == 1 else {}, {}
    for tile in tiles:
        part = {k: ops.take(v, tile, axis=0) for k, v in data.items()}
        rows, sums, factors = job.tile(part, job.block_rows(tile_rows), sums)
        found.append(rows)
    rows = {k: ops.concatenate([x[k] for x in found], axis=0) for k in found[0]}
    zeros = {k: ops.zeros((count, v.shape[-1]), v.dtype) for k, v in rows.items()}
    places = ops.expand_dims(chosen, axis=-1)
    rows = {k: ops.scatter_update(zeros[k], places, v) for k, v in rows.items()}
    return rows, sums, factors


def _whole_blocks(height, block):
    """Adjusts `block` and `height` so that a tile is a number of full blocks."""
    if block is None:
        return None, height
    if isinstance(height, int):
        blocks = max(1, -(-height // block))
        block = -(-height // blocks)
    else:
        blocks = (height + block - 1) // block
    return block, blocks * block


def _padded(x, length):
    """(N, ...) padded with zeros to `length`; unchanged if known not to be shorter."""
    rows, *rest = ops.shape(x)
    if isinstance(rows, int) and isinstance(length, int) and rows >= length:
        return x
    zeros = ops.zeros((length - rows, *rest), dtype=x.dtype)
    return ops.concatenate([x, zeros], axis=0)


def _in_tiles(x, tiles, height):
    """(N, ...) padded with zeros and reshaped to (tiles, height, ...)."""
    x = _padded(x, tiles * height)
    return ops.reshape(x, (tiles, height, *x.shape[1:]))


def _set_tile(all_tiles, i, tile):
    return ops.slice_update(all_tiles, (i, 0, 0), ops.expand_dims(tile, 0))


def _cleared(data, supervised):
    """`data` with zeros in the rows that are not supervised."""

    def clear(x):
        chosen = ops.reshape(supervised, (-1, *[1] * (len(x.shape) - 1)))
        return ops.where(chosen, x, 0)

    return {k: clear(v) for k, v in data.items()}
