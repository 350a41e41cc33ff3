"""LM head, cross-entropy and energies in one operation, without (N, V) logits.

With a vocabulary of 262,144 classes the logits of teacher and student, their softmaxes
and their gradients are what runs a user out of memory. Here the heads run on tiles of
a few rows; value and gradient of a tile are taken at once and the tile is forgotten:

    total = sum_n [ c_0n CE_n + sum_k c_kn l_kn ]

The coefficients c (row weight times exp(log beta)) rest on features of the teacher and
not on logits, so they are known before the head runs. Hence the gradient can be taken
in the forward pass and nothing is computed twice: d total / d logits of a tile is
summed into the gradients of the hidden states and of the head, and the gradient
towards c, from which the betas learn, is the values themselves, exactly. The backward
pass only scales; where one tile holds all rows, it multiplies the scaled hidden states
with the tile's slope, since a pass over the head's gradient would cost as much as the
product. (Recomputing tiles by remat costs the head's products once more.)

Rows without weight are sorted behind the others and their tiles never run. Tiles are
of rows only: energies need whole rows, so tiles of the vocabulary would have to compute
the logits again for each pass over them.
"""

import dataclasses
from typing import Any

import keras
from keras import ops

from keras_betakd.backends import add_outer, runs_eagerly
from keras_betakd.distribution.devices import parts_of_batch, spread_by_part
from keras_betakd.head_loss.tiles import HeadTiles, rows_per_tile


@dataclasses.dataclass(frozen=True)
class HeadLoss:
    """What `fused_head_loss` returns.

    Attributes:
        total: scalar, the weighted sum; what is differentiated.
        task: (N,), cross-entropy of each row in nats; 0 where the weight is 0.
        energies: dict of (N,), each energy at each row; 0 where the weight is 0.
        correct: (N,), 1 where the label has the student's largest logit.
    """

    total: Any
    task: Any
    energies: dict
    correct: Any


def fused_head_loss(
    student_rows,
    student_head,
    teacher_rows,
    teacher_head,
    labels,
    coefficients,
    energies,
    tile_rows=None,
    gradients=True,
):
    """Cross-entropy and energies of rows of hidden states, and their weighted sum.

    The same numbers as computing the logits whole, to rounding; see the module.

    Args:
        student_rows: (N, H_s), hidden states where a label is predicted.
        student_head: a `keras_betakd.models.HeadMatrix` over V classes.
        teacher_rows: (N, H_t); nothing flows back through it.
        teacher_head: a `HeadMatrix`, too, or any callable, (n, H_t) to logits (n, V).
        labels: (N,) class ids, any where all coefficients are 0.
        coefficients: (1 + E, N) float32: the weight of the cross-entropy and of each
            energy at each row. A row whose coefficients are all 0 is not supervised:
            whatever its hidden states hold, it changes nothing.
        energies: dict of E energies, in the order of the coefficients.
        tile_rows: rows of logits to hold at a time; by `rows_per_tile` if `None`.
        gradients: whether `total` will be differentiated.

    Returns:
        A `HeadLoss`. Only `total` carries gradients: towards `student_rows`, the
        head's kernel, bias and LoRA factors, `coefficients`, and what energies learn.
    """
    kernel = student_head.kernel
    if tile_rows is None:
        tile_rows = rows_per_tile(*kernel.shape, student_rows.shape[0])
    job = HeadTiles(student_head, teacher_head, energies, gradients)
    low_rank = _low_rank_rows(student_rows, student_head)
    supervised = ops.any(coefficients != 0, axis=0)
    data = {
        "student": student_rows,
        "teacher": teacher_rows,
        "labels": ops.cast(labels, "int32"),
        "coefficients": ops.transpose(coefficients),
    }
    if low_rank is not None:
        data["low_rank"] = low_rank
    data = {k: ops.stop_gradient(v) for k, v in data.items()}
    rows, sums, factors = _run_in_parts(job, data, supervised, tile_rows)
    values = ops.transpose(rows["values"])
    values = ops.where(supervised, values, 0.0)
    correct, values, derivatives = (
        values[0],
        values[1 : 2 + len(energies)],
        values[2 + len(energies) :],
    )
    # Selected one by one: 0 times an infinite energy would be NaN.
    total = ops.sum(ops.where(coefficients != 0, coefficients * values, 0.0))
    if gradients:
        inputs = {
            "student": student_rows,
            "low_rank": low_rank,
            "kernel": kernel,
            "bias": student_head.bias,
            "low_rank_kernel": student_head.low_rank and student_head.low_rank[0],
        }
        pairs = [(coefficients, values)]
        pairs += _parameter_gradients(energies, coefficients, derivatives)
        products = {name: _Product(*pair) for name, pair in factors.items()}
        found = {**rows, **sums, **products}
        pairs += [(inputs[k], v) for k, v in found.items() if k in inputs]
        total = _with_gradients(ops.stop_gradient(total), pairs)
    return HeadLoss(
        total=total,
        task=values[0],
        energies=dict(
            zip(energies, ops.unstack(values[1:], len(energies)), strict=True)
        ),
        correct=correct,
    )


def _parameter_gradients(energies, coefficients, derivatives):
    """What the energies learn, with the gradient of the weighted sum towards it."""
    learned = [
        (k, e) for k, e in enumerate(energies.values(), 1) if e.parameter is not None
    ]
    return [
        (
            ops.convert_to_tensor(energy.parameter),
            ops.sum(ops.stop_gradient(coefficients[k]) * derivatives[i]),
        )
        for i, (k, energy) in enumerate(learned)
    ]


def _cleared(data, supervised):
    """`data` with zeros where nothing is supervised."""

    def clear(x):
        chosen = ops.reshape(supervised, (-1, *[1] * (len(x.shape) - 1)))
        return ops.where(chosen, x, 0)

    return {k: clear(v) for k, v in data.items()}


def _low_rank_rows(rows, head):
    """scale * rows @ B^T, through which only B learns; `None` without LoRA."""
    if head.low_rank is None:
        return None
    _, down, scale = head.low_rank
    rows = ops.cast(ops.stop_gradient(rows), "float32")
    return scale * ops.matmul(rows, ops.transpose(ops.cast(down, "float32")))


@dataclasses.dataclass(frozen=True)
class _Product:
    """left^T right, computed when it is asked for."""

    left: Any
    right: Any

    def scaled(self, factor):
        # The small one of the two is scaled, not the (V, H) that they make; but a
        # factor for losses in float16 could take it beyond what float16 holds.
        if keras.backend.standardize_dtype(self.right.dtype) == "float32":
            return add_outer(None, self.left, factor * self.right)
        return factor * add_outer(None, self.left, self.right)


def _scaled(gradient, factor):
    if isinstance(gradient, _Product):
        return gradient.scaled(factor)
    return factor * gradient


def _with_gradients(total, pairs):
    """`total`, with gradients that are known already, but for a factor."""
    inputs, gradients = zip(*pairs, strict=True)

    @ops.custom_gradient
    def attach(*inputs):
        def gradient(*args, upstream=None):
            upstream = args[0] if upstream is None else upstream
            return tuple(
                ops.cast(_scaled(g, upstream), x.dtype)
                for g, x in zip(gradients, inputs, strict=True)
            )

        return total, gradient

    return attach(*inputs)


def _run_in_parts(job, data, supervised, tile_rows):
    """As `_run`; where a batch is spread over devices, each works on its own rows.

    Tiles of the whole batch would be worked on by all of them.
    """
    count, parts = ops.shape(data["student"])[0], parts_of_batch()
    if parts == 1 or count % parts:
        return _run(job, data, supervised, tile_rows)

    def cut(x):
        return spread_by_part(ops.reshape(x, (parts, count // parts, *x.shape[1:])))

    data, supervised = {k: cut(v) for k, v in data.items()}, cut(supervised)
    # The same number of tiles for all, so that none waits within the loop.
    most = ops.max(ops.sum(ops.cast(supervised, "int32"), axis=1))
    rows, sums, factors = ops.vectorized_map(
        lambda part: _run(job, *part, tile_rows, most), (data, supervised)
    )
    rows, factors = keras.tree.map_structure(
        lambda x: ops.reshape(x, (-1, *x.shape[2:])), (rows, factors)
    )
    return rows, {k: ops.sum(v, axis=0) for k, v in sums.items()}, factors


def _run(job, data, supervised, tile_rows, most=None):
    """As `HeadTiles.tile`, of all rows, in their own order.

    Args:
        most: how many rows to compute at least; those that are supervised if `None`.
    """
    count = ops.shape(data["student"])[0]
    known = isinstance(count, int)  # TensorFlow may trace without the batch size
    fits = known and count <= tile_rows
    if runs_eagerly() and not fits:
        return _run_chosen(job, data, supervised, tile_rows)
    # Of a small batch a full tile would be mostly padding.
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

    # The first tile before the loop: a sum need not start from zeros.
    rows, sums, _ = tile(0, {})
    rows = {k: _padded(ops.expand_dims(v, 0), tiles) for k, v in rows.items()}
    start = ops.convert_to_tensor(1, "int32")
    _, rows, sums = ops.while_loop(lambda i, *_: i < needed, body, (start, rows, sums))
    back = ops.argsort(order)
    flat = {k: ops.reshape(v, (-1, v.shape[-1])) for k, v in rows.items()}
    return {k: ops.take(v, back, 0) for k, v in flat.items()}, sums, {}


def _run_chosen(job, data, supervised, tile_rows):
    """As `_run`, on the supervised rows alone: shapes may differ from call to call."""
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
    """`block` and `height` such that a tile is so many whole blocks."""
    if block is None:
        return None, height
    if isinstance(height, int):
        blocks = max(1, -(-height // block))
        block = -(-height // blocks)
    else:
        blocks = (height + block - 1) // block
    return block, blocks * block


def _padded(x, length):
    """(N, ...) followed by zeros up to `length`; itself if known to be no shorter."""
    rows, *rest = ops.shape(x)
    if isinstance(rows, int) and isinstance(length, int) and rows >= length:
        return x
    zeros = ops.zeros((length - rows, *rest), dtype=x.dtype)
    return ops.concatenate([x, zeros], axis=0)


def _in_tiles(x, tiles, height):
    """(N, ...) followed by zeros and cut into (tiles, height, ...)."""
    x = _padded(x, tiles * height)
    return ops.reshape(x, (tiles, height, *x.shape[1:]))


def _set_tile(all_tiles, i, tile):
    return ops.slice_update(all_tiles, (i, 0, 0), ops.expand_dims(tile, 0))
