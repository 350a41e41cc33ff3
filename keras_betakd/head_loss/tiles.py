"""One tile of the fused head: logits of some rows, their losses and gradients."""

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

# Float32 arrays that are alive at a time: of the size of a tile (the logits of both
# models and the gradient) and of the size of a block (their logs, probabilities and the
# intermediate results of an energy).
_COPIES_OF_TILE, _COPIES_OF_BLOCK = 3, 8
_LEAST_BUDGET, _LEAST_BUDGET_ON_ACCELERATOR = 2**27, 2**30
# A tile with more rows and more logits than these saves no time: so many rows saturate
# the matrix products, so many logits the elementwise operations.
_ENOUGH_ROWS, _ENOUGH_LOGITS = 256, 2**22
# A CPU makes the many elementwise passes several times faster over blocks of this size,
# which stay in its cache, than over a whole tile. A block has a minimum number of rows,
# since the threads divide the rows among them, and is larger where operations run one
# by one, each of which costs another ten microseconds or so.
_BLOCK_BYTES, _EAGER_BLOCK_BYTES, _BLOCK_ROWS = 2**20, 2**22, 4


def rows_per_tile(classes, width, count=None, memory_budget=None):
    """The number of rows of a tile, whose logits are held at a time.

    Args:
        classes: V.
        width: H, the width of the student's hidden states.
        count: the number of rows of the batch; `None` if unknown.
        memory_budget: bytes that all arrays of a tile may take together. The default
            is the size of the head's gradient, (V, H) in float32, which training needs
            anyway; twice that if all `count` rows then fit into one tile, since the
            tiles of a loop are held beside that gradient; and in any case at least
            128 MiB, on an accelerator 1 GiB, since smaller tiles save little memory and
            do not saturate the device: every tile reads the whole head.

    Returns:
        At most 256 rows, or as many as give four million logits if that is more: a
        larger tile saves no time, and the last one would be padded with more rows.
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


def tile_bytes(classes, width, count):
    """The bytes of the arrays that are alive at a time while a tile is computed.

    Args:
        classes, width, count: as for `rows_per_tile`.
    """
    rows = min(count, rows_per_tile(classes, width, count))
    if not runs_on_processor():
        return 4 * classes * _COPIES_OF_BLOCK * rows
    block = min(rows, _rows_per_block(classes))
    return 4 * classes * (_COPIES_OF_TILE * rows + _COPIES_OF_BLOCK * block)


def _rows_per_block(classes):
    size = _EAGER_BLOCK_BYTES if runs_eagerly() else _BLOCK_BYTES
    return max(_BLOCK_ROWS, size // (4 * classes))


def teacher_key(number):
    """The name of a teacher's rows among the arrays of a tile."""
    return f"teacher_{number}"


class HeadTiles:
    """Computes the losses and gradients of the rows of one tile.

    Args:
        head: the student's `HeadMatrix`.
        teachers: for each teacher `(head, energies)`: its `HeadMatrix`, or a callable
            that returns logits, and the energies, a dict, that compare the student with
            it.
        gradients: whether gradients are computed.
    """

    def __init__(self, head, teachers, gradients):
        self.head = _without_gradients(head)
        self.teacher_heads = [
            _without_gradients(h) if isinstance(h, HeadMatrix) else h
            for h, _ in teachers
        ]
        self.energies = [list(energies.values()) for _, energies in teachers]
        self.gradients = gradients
        everyone = [energy for energies in self.energies for energy in energies]
        learned = sum(energy.parameter is not None for energy in everyone)
        self.columns = 2 + len(everyone) + learned  # of `_values_and_gradient`

    def block_rows(self, tile_rows):
        """The rows of a block, in which the logits of a tile are processed.

        `None` if the whole tile is processed at once.
        """
        if not runs_on_processor():
            return None
        return min(tile_rows, _rows_per_block(self.head.kernel.shape[0]))

    def tile(self, data, block, sums):
        """The values of some rows, and the gradients of their weighted sum.

        Args:
            data: dict of the rows' arrays: `"rows"` (n, H_s) of the student, (n, H_t)
                of each teacher by its `teacher_key`, `"labels"` (n,), `"coefficients"`
                (n, 1 + E) and, for a head with LoRA, `"low_rank"` (n, r).
            block: the rows of a block, see `block_rows`.
            sums: gradients summed over the tiles before, by name; `None` if this is the
                only tile.

        Returns:
            `(rows, sums, factors)`, dicts by name. `rows` holds what each row has of
            its own: values and the gradients of hidden states. `sums` holds gradients
            summed over this tile and those before. If this is the only tile, `factors`
            holds pairs (n, V) and (n, .) whose product left^T @ right is a gradient.
        """
        # Before the student's logits, which are read first and then still in the cache.
        teachers = [
            ops.cast(head(data[teacher_key(i)]), "float32")
            for i, head in enumerate(self.teacher_heads)
        ]
        capped = self.head.without_bias(data["rows"])
        bias = self.head.bias
        if bias is not None:
            logits = capped + bias
        else:  # the soft cap's gradient reads them later, and PyTorch changes logits
            logits = capped if self.head.soft_cap is None else ops.copy(capped)
        inputs = logits, data["labels"], data["coefficients"], *teachers
        work = self._values_and_gradient
        values, gradient = _by_blocks(work, inputs, block, self.columns)
        rows = {"values": values}
        if not self.gradients:
            return rows, {}, {}
        gradient = add_at(gradient, data["labels"], -data["coefficients"][:, 0])
        return self._gradients(rows, gradient, capped, data, sums)

    def _values_and_gradient(self, student, labels, coefficients, *teachers):
        """The values of a block, and the gradient of their weighted sum in the logits.

        The gradient lacks the term of the cross-entropy at the label's logit, minus its
        coefficient, which costs less to add for a whole tile.

        Args:
            student: (n, V) logits; PyTorch writes the gradient over them.
            labels: (n,).
            coefficients: (n, 1 + E).
            *teachers: (n, V) logits of each teacher.

        Returns:
            `(values, gradient)`, (n, 2 + E + P) and (n, V). The values are correctness,
            cross-entropy, E energies, and the derivatives of the P energies that learn
            a parameter.
        """
        correct = is_argmax(student, labels)
        student = LogitRows(student, labels)
        task = -student.log_probability_of(labels)
        values, derivatives = [ops.cast(correct, "float32"), task], []
        q, times_q, gradient = student.probabilities(), coefficients[:, :1], None
        pairs = [
            (rows, energy)
            for rows, energies in zip(
                map(LogitRows, teachers), self.energies, strict=True
            )
            for energy in energies
        ]
        for k, (teacher, energy) in enumerate(pairs, start=1):
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
                    gradient = add_scaled(gradient, factor, x)
        gradient = add_scaled(gradient, times_q, q, memory=student.logits)
        return ops.stack(values + derivatives, axis=-1), gradient

    def _gradients(self, rows, gradient, capped, data, sums):
        """As `tile`, from the gradient with respect to the logits, (n, V)."""
        head, is_only_tile = self.head, sums is None
        before, sums, factors = sums or {}, {}, {}
        if head.bias is not None:
            sums["bias"] = ops.sum(gradient, axis=0) + before.get("bias", 0.0)
        if head.soft_cap is not None:
            gradient = gradient * (1.0 - ops.square(capped / head.soft_cap))
        if head.low_rank is not None:
            up = ops.cast(head.low_rank[0], "float32")
            rows["low_rank"] = ops.matmul(gradient, up)
            factors["low_rank_kernel"] = gradient, data["low_rank"]
        low = ops.cast(gradient, head.dtype)  # the precision of the head's products
        rows["rows"] = ops.cast(ops.matmul(low, head.kernel), "float32")
        if head.trainable:
            factors["kernel"] = low, ops.cast(data["rows"], head.dtype)
        if is_only_tile:
            return rows, sums, factors
        for name, (left, right) in factors.items():
            sums[name] = add_outer(before.get(name), left, right)
        return rows, sums, {}


def _without_gradients(head):
    """`head` without gradients, since they are computed here and not by autodiff."""
    cut = ops.stop_gradient
    return dataclasses.replace(
        head,
        kernel=ops.cast(cut(head.kernel), head.dtype),
        bias=None if head.bias is None else cut(head.bias),
        low_rank=head.low_rank and (cut(head.low_rank[0]), *head.low_rank[1:]),
    )


def _by_blocks(function, inputs, block, columns):
    """`function(*inputs)` computed `block` rows at a time.

    Args:
        function: takes the inputs' rows and returns (n, columns) and (n, V).
        inputs: the student's logits (n, V) and other arrays (n, ...).
    """
    first, *others = inputs
    if block in (None, first.shape[0]):
        return function(*inputs)
    if runs_eagerly():  # `function` writes its second result over the first input
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

    # On a CPU new memory costs as much time as several passes over it.
    gradient = first if in_place else ops.zeros_like(first)
    values = ops.zeros((rows, columns), dtype="float32")
    return ops.fori_loop(0, rows // block, work, (values, gradient))
