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
pass only scales. (Recomputing tiles by remat costs the head's products once more.)

Rows without weight are sorted behind the others and their tiles never run. Tiles are
of rows only: energies need whole rows, so tiles of the vocabulary would have to compute
the logits again for each pass over them.
"""

import dataclasses
from typing import Any

from keras import ops

from keras_betakd.backends import add_outer, argmax, runs_on_processor
from keras_betakd.devices import parts_of_batch, spread_by_part
from keras_betakd.energies.rows import LogitRows

# Live float32 copies of a tile: both models' logits and the slope, and, where a tile is
# not worked on in blocks, logs and probabilities of both and what an energy needs.
_COPIES_IN_BLOCKS, _COPIES = 3, 8
_SMALLEST_BUDGET = 128 * 2**20
# Beyond both of these a larger tile saves nothing: so many rows keep a product busy, so
# many logits the rest.
_ENOUGH_ROWS, _ENOUGH_LOGITS = 256, 2**22
# A processor makes its many elementwise passes over blocks of so many bytes, which stay
# in its cache, several times faster than over a whole tile. But its threads share out
# rows, so that a block needs some.
_BLOCK_BYTES, _BLOCK_ROWS = 2**20, 4


def rows_per_tile(classes, width, memory_budget=None):
    """How many rows of logits to hold at a time.

    Args:
        classes: V.
        width: H, the width of the student's hidden states.
        memory_budget: bytes that the tiles of all stages may take together. Defaults
            to twice the size of the head's gradient, (V, H) in float32, which training
            needs anyway, and of which a loop over tiles keeps a second copy; but at
            least 128 MiB: fewer rows save little and starve the processor, since every
            tile reads the whole head.

    Returns:
        At most 256 rows, or as many as make four million logits: a larger tile
        saves nothing, and the last one would compute more rows that nobody needs.
    """
    if memory_budget is None:
        memory_budget = max(_SMALLEST_BUDGET, 2 * 4 * classes * width)
    copies = _COPIES_IN_BLOCKS if runs_on_processor() else _COPIES
    enough = max(_ENOUGH_ROWS, _ENOUGH_LOGITS // classes)
    return max(1, min(enough, memory_budget // (4 * classes * copies)))


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
        teacher_head: callable, (n, H_t) to logits (n, V).
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
        tile_rows = rows_per_tile(*kernel.shape)
    job = _Tiles(student_head, teacher_head, energies, gradients)
    low_rank = _low_rank_rows(student_rows, student_head)
    supervised = ops.any(coefficients != 0, axis=0)
    data = {
        "student": _cleared(student_rows, supervised),
        "teacher": _cleared(teacher_rows, supervised),
        "labels": ops.where(supervised, ops.cast(labels, "int32"), 0),
        "coefficients": ops.transpose(ops.stop_gradient(coefficients)),
    }
    if low_rank is not None:
        data["low_rank"] = _cleared(low_rank, supervised)
    rows, sums = _run_in_parts(job, data, supervised, tile_rows)
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
        pairs += [(inputs[k], v) for k, v in {**rows, **sums}.items() if k in inputs]
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


def _cleared(rows, supervised):
    """`rows` without gradient, and with zeros where nothing is supervised."""
    return ops.where(supervised[:, None], ops.stop_gradient(rows), 0)


def _low_rank_rows(rows, head):
    """scale * rows @ B^T, through which only B learns; `None` without LoRA."""
    if head.low_rank is None:
        return None
    _, down, scale = head.low_rank
    rows = ops.cast(ops.stop_gradient(rows), "float32")
    return scale * ops.matmul(rows, ops.transpose(ops.cast(down, "float32")))


def _with_gradients(total, pairs):
    """`total`, with gradients that are known already."""
    inputs, gradients = zip(*pairs, strict=True)

    @ops.custom_gradient
    def attach(*inputs):
        def gradient(*args, upstream=None):
            upstream = args[0] if upstream is None else upstream
            return tuple(
                ops.cast(upstream * g, x.dtype)
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
    rows, sums = ops.vectorized_map(
        lambda part: _run(job, *part, tile_rows, most), (data, supervised)
    )
    rows = {k: ops.reshape(v, (count, *v.shape[2:])) for k, v in rows.items()}
    return rows, {k: ops.sum(v, axis=0) for k, v in sums.items()}


def _run(job, data, supervised, tile_rows, most=None):
    """Row-wise results in the rows' own order, and sums over all tiles.

    Args:
        most: how many rows to compute at least; those that are supervised if `None`.
    """
    count = ops.shape(data["student"])[0]
    known = isinstance(count, int)  # TensorFlow may trace without the batch size
    # Of a small batch a full tile would be mostly padding.
    height = min(count, tile_rows) if known else ops.clip(count, 1, tile_rows)
    block, height = _whole_blocks(height, job.block_rows(tile_rows))
    if known and count <= tile_rows:
        part = {k: _padded(v, height) for k, v in data.items()}
        rows, sums = job.tile(part, block, {})
        return {k: v[:count] for k, v in rows.items()}, sums
    tiles = (count + height - 1) // height
    order = ops.argsort(ops.cast(ops.logical_not(supervised), "int32"))
    data = {k: _in_tiles(ops.take(v, order, 0), tiles, height) for k, v in data.items()}
    most = ops.sum(ops.cast(supervised, "int32")) if most is None else most
    needed = (most + height - 1) // height

    def tile(i, sums):
        part = {k: ops.take(v, i, axis=0) for k, v in data.items()}
        return job.tile(part, block, sums)

    def body(i, rows, sums):
        new_rows, sums = tile(i, sums)
        rows = {k: _set_tile(rows[k], i, v) for k, v in new_rows.items()}
        return i + 1, rows, sums

    # The first tile before the loop: a sum need not start from zeros.
    rows, sums = tile(0, {})
    rows = {k: _padded(ops.expand_dims(v, 0), tiles) for k, v in rows.items()}
    start = ops.convert_to_tensor(1, "int32")
    _, rows, sums = ops.while_loop(lambda i, *_: i < needed, body, (start, rows, sums))
    back = ops.argsort(order)
    flat = {k: ops.reshape(v, (-1, v.shape[-1])) for k, v in rows.items()}
    return {k: ops.take(v, back, 0) for k, v in flat.items()}, sums


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
    """(N, ...) followed by zeros up to `length`."""
    rows, *rest = ops.shape(x)
    zeros = ops.zeros((length - rows, *rest), dtype=x.dtype)
    return ops.concatenate([x, zeros], axis=0)


def _in_tiles(x, tiles, height):
    """(N, ...) followed by zeros and cut into (tiles, height, ...)."""
    x = _padded(x, tiles * height)
    return ops.reshape(x, (tiles, height, *x.shape[1:]))


def _set_tile(all_tiles, i, tile):
    return ops.slice_update(all_tiles, (i, 0, 0), ops.expand_dims(tile, 0))


class _Tiles:
    """The computation of one tile."""

    def __init__(self, head, teacher_head, energies, gradients):
        # Cut off: what is computed here are the gradients themselves.
        cut = ops.stop_gradient
        self.head = dataclasses.replace(
            head,
            kernel=ops.cast(cut(head.kernel), head.dtype),
            bias=None if head.bias is None else cut(head.bias),
            low_rank=head.low_rank and (cut(head.low_rank[0]), *head.low_rank[1:]),
        )
        self.teacher_head = teacher_head
        self.energies = energies
        self.gradients = gradients

    def block_rows(self, tile_rows):
        """How many rows to work on together between the products; `None` for all."""
        if not runs_on_processor():
            return None
        classes = self.head.kernel.shape[0]
        return min(tile_rows, max(_BLOCK_ROWS, _BLOCK_BYTES // (4 * classes)))

    def tile(self, data, block, sums):
        """Values of some rows, and, of their weighted sum, the gradients.

        Args:
            sums: gradients summed over earlier tiles, by name.
        """
        capped = self._student_logits(data["student"])
        logits = capped if self.head.bias is None else capped + self.head.bias
        teacher = ops.cast(self.teacher_head(data["teacher"]), "float32")
        inputs = logits, teacher, data["labels"], data["coefficients"]
        values, slopes = _by_blocks(self._values_and_slope, inputs, block)
        rows = {"values": values}
        if not self.gradients:
            return rows, {}
        return self._gradients(rows, slopes, capped, data, sums)

    def _values_and_slope(self, student, teacher, labels, coefficients):
        """Values, and the slope of their weighted sum in the logits.

        The values are (n, 2 + E + P): correctness, cross-entropy, E energies, and the
        derivatives of those of them that learn a parameter.
        """
        correct = argmax(student) == labels
        student, teacher = LogitRows(student, labels), LogitRows(teacher)
        task = -_at(student.log_probabilities(), labels)
        values = [ops.cast(correct, "float32"), task]
        slope = coefficients[:, :1] * student.probabilities()
        slope = _add_at(slope, labels, -coefficients[:, 0])
        derivatives = []
        for k, energy in enumerate(self.energies.values(), start=1):
            if energy.parameter is None:
                value, gradient = energy.value_and_gradient(teacher, student)
            else:
                value, gradient, *more = energy.value_and_gradients(teacher, student)
                derivatives += more
            values.append(value)
            slope = slope + coefficients[:, k : k + 1] * gradient
        return ops.stack(values + derivatives, axis=-1), slope

    def _student_logits(self, rows):
        head = self.head
        rows = ops.cast(rows, head.dtype)
        logits = ops.matmul(rows, ops.transpose(head.kernel))
        if head.soft_cap is not None:
            logits = ops.tanh(logits / head.soft_cap) * head.soft_cap
        return ops.cast(logits, "float32")

    def _gradients(self, rows, slope, capped, data, before):
        head, sums = self.head, {}
        if head.bias is not None:
            sums["bias"] = ops.sum(slope, axis=0) + before.get("bias", 0.0)
        if head.soft_cap is not None:
            slope = slope * (1.0 - ops.square(capped / head.soft_cap))
        if head.low_rank is not None:
            up = ops.cast(head.low_rank[0], "float32")
            rows["low_rank"] = ops.matmul(slope, up)
            sums["low_rank_kernel"] = add_outer(
                before.get("low_rank_kernel"), slope, data["low_rank"]
            )
        slope = ops.cast(slope, head.dtype)
        rows["student"] = ops.cast(ops.matmul(slope, head.kernel), "float32")
        if head.trainable:
            hidden = ops.cast(data["student"], head.dtype)
            sums["kernel"] = add_outer(before.get("kernel"), slope, hidden)
        return rows, sums


def _by_blocks(function, inputs, block):
    """`function(*inputs)`, a tuple of tensors, computed `block` rows at a time."""
    if block in (None, inputs[0].shape[0]):
        return function(*inputs)
    cut = tuple(ops.reshape(x, (-1, block, *x.shape[1:])) for x in inputs)
    outputs = ops.map(lambda parts: function(*parts), cut)
    return tuple(ops.reshape(x, (-1, x.shape[-1])) for x in outputs)


def _at(x, labels):
    """x[n, labels[n]] of each row."""
    return ops.squeeze(ops.take_along_axis(x, labels[:, None], axis=-1), axis=-1)


def _add_at(x, labels, increments):
    """`x` with the increment of each row added at its label."""
    indices = ops.stack(
        [ops.arange(ops.shape(labels)[0], dtype="int32"), labels], axis=-1
    )
    return ops.scatter_update(x, indices, _at(x, labels) + increments)
