"""`logit_statistics`: a few numbers of each row's logits, without all the logits."""

from keras import ops

from keras_betakd.head_loss.tile_loop import run_in_tiles
from keras_betakd.head_loss.tiles import rows_per_tile


def fits_one_tile(count, classes, width):
    """Whether the logits of all rows may be held at a time.

    Args:
        count: the number of rows; `None` if unknown, as in a graph of TensorFlow.
        classes, width: the shape (V, H) of the student's head.
    """
    return count is not None and count <= rows_per_tile(classes, width, count)


def logit_statistics(function, size, rows, head, supervised, tile_rows):
    """`function` of the logits of each row, computed tile by tile, without gradient.

    Args:
        function: logits (n, V) to (n, size).
        size: how many numbers it gives for a row.
        rows: (B, K, ...), what `head` takes.
        head: callable, (n, ...) to logits (n, V).
        supervised: bool (B, K); the result is 0 at the other rows.
        tile_rows: how many rows' logits are held at a time.

    Returns:
        (B, K, size) float32.
    """
    shape = ops.shape(supervised)
    data = {"rows": ops.stop_gradient(ops.reshape(rows, (-1, *rows.shape[2:])))}
    chosen = ops.reshape(supervised, (-1,))
    job = _Statistics(function, head)
    values = run_in_tiles(job, data, chosen, tile_rows)[0]["values"]
    values = ops.where(chosen[:, None], values, 0.0)
    return ops.reshape(values, (*shape, size))


class _Statistics:
    """The job of `logit_statistics`, see `run_in_tiles`."""

    def __init__(self, function, head):
        self.function = function
        self.head = head

    def block_rows(self, tile_rows):
        return None

    def tile(self, data, block, sums):
        logits = ops.cast(self.head(data["rows"]), "float32")
        return {"values": ops.stop_gradient(self.function(logits))}, {}, {}
