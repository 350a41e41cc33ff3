"""One tile of the fused head: logits of some rows, their values and their gradients."""

import dataclasses

from keras import ops

from keras_betakd.backends import (
    add_at,
    add_outer,
    add_scaled,
    is_argmax,
    loops_write_over_what_they_read,
    runs_eagerly,
    runs_on_processor,
)
from keras_betakd.energies.logit_rows import LogitRows
from keras_betakd.models.heads import HeadMatrix

# Live float32 copies of a tile: both models' logits, the slope, and, for what is worked
# on together, their logs and probabilities and what an energy needs.
_COPIES_OF_TILE, _COPIES_OF_BLOCK = 3, 8
_LEAST_BUDGET, _LEAST_BUDGET_ON_ACCELERATOR = 2**27, 2**30
# Beyond both of these a larger tile saves nothing: so many rows keep a product busy, so
# many logits the rest.
_ENOUGH_ROWS, _ENOUGH_LOGITS = 256, 2**22
# A processor makes its many elementwise passes over blocks of so many bytes, which stay
# in its cache, several times faster than over a whole tile. But its threads share out
# rows, so that a block needs some; and where operations run one by one, each costs some
# ten microseconds besides.
_BLOCK_BYTES, _EAGER_BLOCK_BYTES, _BLOCK_ROWS = 2**20, 2**22, 4


def rows_per_tile(classes, width, count=None, memory_budget=None):
    """How many rows of logits to hold at a time.

    Args:
        classes: V.
        width: H, the width of the student's hidden states.
        count: how many rows there are; any number if `None`.
        memory_budget: bytes that the tiles of all stages may take together. Defaults
            to twice the size of the head's gradient, (V, H) in float32, which training
            needs anyway, if one tile of that size holds all rows, and otherwise to
            once, since the tiles of a loop stand beside that gradient; but to at least
            128 MiB, on an accelerator 1 GiB: fewer rows save little and starve the
            device, since every tile reads the whole head.

    Returns:
        At most 256 rows, or as many as make four million logits: a larger tile
        saves nothing, and the last one would compute more rows that nobody needs.
    """
    if memory_budget is None:
        on_accelerator = not runs_on_processor()
        least = _LEAST_BUDGET_ON_ACCELERATOR if on_accelerator else _LEAST_BUDGET
        gradient = 4 * classes * width
        budgets = (max(least, times * gradient) for times in (1, 2))
        once, twice = (rows_per_tile(classes, width, None, b) for b in budgets)
        return twice if count is not None and count <= twice else once
    held = memory_budget // (4 * classes)
    if runs_on_processor():
        held = (held - _COPIES_OF_BLOCK * _rows_per_block(classes)) // _COPIES_OF_TILE
    else:
        held //= _COPIES_OF_BLOCK
    return max(1, min(max(_ENOUGH_ROWS, _ENOUGH_LOGITS // classes), held))


def _rows_per_block(classes):
    size = _EAGER_BLOCK_BYTES if runs_eagerly() else _BLOCK_BYTES
    return max(_BLOCK_ROWS, size // (4 * classes))


class HeadTiles:
    """The computation of one tile."""

    def __init__(self, head, teacher_head, energies, gradients):
        self.head = _cut_off(head)
        if isinstance(teacher_head, HeadMatrix):
            teacher_head = _cut_off(teacher_head)
        self.teacher_head = teacher_head
        self.energies = energies
        self.gradients = gradients
        learned = sum(e.parameter is not None for e in energies.values())
        self.columns = 2 + len(energies) + learned  # of the values of a row

    def block_rows(self, tile_rows):
        """How many rows to work on together between the products; `None` for all."""
        if not runs_on_processor():
            return None
        return min(tile_rows, _rows_per_block(self.head.kernel.shape[0]))

    def tile(self, data, block, sums):
        """Values of some rows, and, of their weighted sum, the gradients.

        Args:
            sums: gradients summed over earlier tiles, by name; `None` if there is no
                other tile.

        Returns:
            Dicts by name: of what each row has, of sums over the rows, and, if there
            is no other tile, of pairs (n, V) and (n, .) in the place of their product,
            which is a sum.
        """
        # Before the student's: those are needed first, and in a processor's cache then.
        teacher = ops.cast(self.teacher_head(data["teacher"]), "float32")
        capped = self.head.without_bias(data["student"])
        bias = self.head.bias
        if bias is not None:
            logits = capped + bias
        else:  # a soft cap needs them once more, and PyTorch will have changed them
            logits = capped if self.head.soft_cap is None else ops.copy(capped)
        inputs = logits, teacher, data["labels"], data["coefficients"]
        work = self._values_and_slope
        values, slopes = _by_blocks(work, inputs, block, self.columns)
        rows = {"values": values}
        if not self.gradients:
            return rows, {}, {}
        slopes = add_at(slopes, data["labels"], -data["coefficients"][:, 0])
        return self._gradients(rows, slopes, capped, data, sums)

    def _values_and_slope(self, student, teacher, labels, coefficients):
        """Values, and the slope of their weighted sum in the logits, all but one part.

        PyTorch writes the slope over the student's logits.

        What is left out, since it costs less for a whole tile, is the cross-entropy's
        derivative through the label's own logit, minus its coefficient.

        The values are (n, 2 + E + P): correctness, cross-entropy, E energies, and the
        derivatives of those of them that learn a parameter.
        """
        correct = is_argmax(student, labels)
        student, teacher = LogitRows(student, labels), LogitRows(teacher)
        task = -student.log_probability_of(labels)
        values, derivatives, slope = [ops.cast(correct, "float32"), task], [], None
        q, times_q = student.probabilities(), coefficients[:, :1]
        for k, energy in enumerate(self.energies.values(), start=1):
            if energy.parameter is None:
                value, parts = energy.value_and_gradient(teacher, student)
            else:
                value, parts, *more = energy.value_and_gradients(teacher, student)
                derivatives += more
            values.append(value)
            for factor, x in parts:
                factor = coefficients[:, k : k + 1] * factor
                if x is q:
                    times_q = times_q + factor
                else:
                    slope = add_scaled(slope, factor, x)
        slope = add_scaled(slope, times_q, q, memory=student.logits)
        return ops.stack(values + derivatives, axis=-1), slope

    def _gradients(self, rows, slope, capped, data, sums):
        head, alone = self.head, sums is None
        before, sums, factors = sums or {}, {}, {}
        if head.bias is not None:
            sums["bias"] = ops.sum(slope, axis=0) + before.get("bias", 0.0)
        if head.soft_cap is not None:
            slope = slope * (1.0 - ops.square(capped / head.soft_cap))
        if head.low_rank is not None:
            up = ops.cast(head.low_rank[0], "float32")
            rows["low_rank"] = ops.matmul(slope, up)
            factors["low_rank_kernel"] = slope, data["low_rank"]
        low = ops.cast(slope, head.dtype)
        rows["student"] = ops.cast(ops.matmul(low, head.kernel), "float32")
        if head.trainable:
            factors["kernel"] = low, ops.cast(data["student"], head.dtype)
        if alone:
            return rows, sums, factors
        for name, (left, right) in factors.items():
            sums[name] = add_outer(before.get(name), left, right)
        return rows, sums, {}


def _cut_off(head):
    """`head` without gradients: what is computed here are the gradients themselves."""
    cut = ops.stop_gradient
    return dataclasses.replace(
        head,
        kernel=ops.cast(cut(head.kernel), head.dtype),
        bias=None if head.bias is None else cut(head.bias),
        low_rank=head.low_rank and (cut(head.low_rank[0]), *head.low_rank[1:]),
    )


def _by_blocks(function, inputs, block, columns):
    """`function(*inputs)`, (n, columns) and (n, V), computed `block` rows at a time."""
    first, *others = inputs
    if block in (None, first.shape[0]):
        return function(*inputs)
    if runs_eagerly():  # and writes the second result over the first input
        blocks = zip(*(x.split(block) for x in inputs), strict=True)
        values = [function(*rows)[0] for rows in blocks]
        return ops.concatenate(values, axis=0), first
    rows, in_place = ops.shape(first)[0], loops_write_over_what_they_read()

    def rows_at(x, start):
        sizes = (block, *x.shape[1:])
        return ops.slice(x, (start, *[0] * (len(sizes) - 1)), sizes)

    def work(i, outputs):
        source = outputs[1] if in_place else first
        found = function(*(rows_at(x, i * block) for x in (source, *others)))
        pairs = zip(outputs, found, strict=True)
        return tuple(ops.slice_update(x, (i * block, 0), part) for x, part in pairs)

    # Fresh memory costs a processor as much time as several passes over it.
    slopes = first if in_place else ops.zeros_like(first)
    values = ops.zeros((rows, columns), dtype="float32")
    return ops.fori_loop(0, rows // block, work, (values, slopes))
