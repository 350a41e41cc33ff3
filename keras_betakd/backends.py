"""What differs between the backends; only `replicas.py` knows them by name, too.

Keras has no public way to ask for a gradient inside a forward pass, and the fused head
must know an energy's gradient while a tile of logits is at hand
(`keras_betakd.head_loss`).
"""

import math

import keras
from keras import ops

# A product of arrays is made by as much at a time before it is added to another one.
_PIECE_BYTES = 2**25
# PyTorch's products on a processor are made of so much of a head at a time.
_CACHED_BYTES = 2**21


def runs_eagerly():
    """Whether each operation runs by itself and writes its result to memory.

    XLA (JAX and TensorFlow) fuses elementwise operations; PyTorch, as Keras trains with
    it by default, does not.
    """
    return keras.backend.backend() == "torch"


def runs_on_processor():
    """Whether arrays are on a CPU, not on an accelerator."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.default_backend() == "cpu"
    if backend == "torch":
        return ops.zeros(()).device.type == "cpu"
    import tensorflow as tf

    return not tf.config.list_logical_devices("GPU")


def loops_write_over_what_they_read():
    """Whether a loop can put its results where it has found its input.

    On JAX, XLA copies the whole array in each step then.
    """
    return keras.backend.backend() == "tensorflow"


def takes_columns_for_biases():
    """Whether `keras.ops.add` mistakes (B, 1) beside (B, N) for a bias if B = N."""
    return keras.backend.backend() == "tensorflow"


def is_argmax(x, classes):
    """Whether the index of the first largest entry of each row is the given one.

    `keras.ops.argmax` keeps pairs of value and index, for which a processor takes four
    to ten times as long as for the plain reductions here.

    Args:
        x: (n, V); restored, if PyTorch changes it.
        classes: (n,) int32.
    """
    if runs_eagerly():
        if x.device.type == "cpu":
            return _is_argmax_in_place(x, classes)
        return x.argmax(dim=-1) == classes
    columns, indices = classes[:, None], ops.arange(x.shape[-1], dtype="int32")
    own, largest = entries_at(x, classes), ops.max(x, axis=-1, keepdims=True)
    earlier = ops.logical_and(x == largest, indices < columns)
    # Sums and maxima of floats are what XLA's processors reduce fastest.
    count = ops.sum(ops.cast(earlier, "float32"), axis=-1)
    return ops.logical_and(own == ops.squeeze(largest, axis=-1), count == 0)


def _is_argmax_in_place(x, classes):
    columns = classes[:, None].long()
    own = x.gather(-1, columns)
    x.scatter_(-1, columns, float("-inf"))
    others = x.amax(dim=-1, keepdim=True)
    x.scatter_(-1, columns, own)
    best, tied = (own > others)[:, 0], (own == others)[:, 0]
    if tied.any():
        best[tied] = x[tied].argmax(dim=-1) == classes[tied]
    return best


def entries_at(x, classes):
    """x[n, classes[n]], (n, V) and (n,) to (n,)."""
    if runs_eagerly():
        return x.gather(-1, classes[:, None].long())[:, 0]
    return ops.squeeze(ops.take_along_axis(x, classes[:, None], axis=-1), axis=-1)


def log_of_largest_share(x, largest, shares):
    """log max softmax(x), (n, V) to (n, 1).

    Args:
        largest: max x, (n, 1).
        shares: callable that returns softmax(x).
    """
    if runs_eagerly():
        return ops.log(ops.max(shares(), axis=-1, keepdims=True))
    # XLA makes one of this and the softmax, and needs no further reduction.
    return -ops.log(ops.sum(ops.exp(x - largest), axis=-1, keepdims=True))


def logits_of(rows, kernel):
    """rows kernel^T of (..., H) and (V, H), through which no gradient flows."""
    if not runs_eagerly() or rows.device.type != "cpu":
        return ops.matmul(rows, ops.transpose(kernel))
    import torch

    # Faster by 7 to 30 % than all classes at once, whose vectors leave the cache.
    size = max(1, _CACHED_BYTES // (kernel.element_size() * kernel.shape[1]))
    flat = rows.reshape(-1, rows.shape[-1])
    logits = rows.new_empty((flat.shape[0], kernel.shape[0]))
    for start in range(0, kernel.shape[0], size):
        some = slice(start, start + size)
        torch.mm(flat, kernel[some].T, out=logits[:, some])
    return logits.reshape(*rows.shape[:-1], kernel.shape[0])


def add_at(x, classes, increments):
    """`x` (n, V) with (n,) increments, one added at a class of each row.

    PyTorch changes `x` in place.
    """
    if runs_eagerly():
        return x.scatter_add_(-1, classes[:, None].long(), increments[:, None])
    rows = ops.arange(ops.shape(classes)[0], dtype="int32")
    there = entries_at(x, classes)
    indices = ops.stack([rows, classes], axis=-1)
    return ops.scatter_update(x, indices, there + increments)


def at_least(x, bound):
    """max(x, bound) for a number; PyTorch changes `x` in place."""
    return x.clamp_(min=bound) if runs_eagerly() else ops.maximum(x, bound)


def within(x, low, high):
    """min(max(x, low), high) for numbers; PyTorch changes `x` in place."""
    return x.clamp_(low, high) if runs_eagerly() else ops.clip(x, low, high)


def expm1_of(x):
    """exp(x) - 1; PyTorch changes `x` in place."""
    return x.expm1_() if runs_eagerly() else ops.expm1(x)


def log1p_of(x):
    """log(1 + x); PyTorch changes `x` in place."""
    return x.log1p_() if runs_eagerly() else ops.log1p(x)


def add_scaled(total, factors, x, memory=None):
    """total + factors * x, for (n, V), (n, 1) and (n, V).

    Args:
        total: what PyTorch changes in place; `None` for zeros.
        memory: (n, V) that nothing needs any more, for PyTorch to write to instead.
    """
    if not runs_eagerly():
        return factors * x if total is None else total + factors * x
    import torch

    if total is None:
        return torch.mul(factors, x, out=memory)
    return torch.addcmul(total, factors, x, out=total if memory is None else memory)


def add_outer(total, left, right):
    """total + left^T right in float32.

    Args:
        total: (V, H) float32, which PyTorch changes in place; `None` for zeros.
        left, right: (n, V) and (n, H), of one dtype.
    """
    if total is None:
        return _outer(left, right)
    if runs_eagerly():
        if left.dtype == total.dtype:
            return total.addmm_(left.T, right)  # not three arrays of its size, but one
        return total.add_(_outer(left, right))
    # XLA adds to the product in place on an accelerator, but makes it first on a
    # processor: there piece by piece. Pieces would cut across what devices share.
    whole = keras.distribution.distribution() or not runs_on_processor()
    pieces = 1 if whole else -(-4 * math.prod(total.shape) // _PIECE_BYTES)
    return _add_in_pieces(total, left, right, pieces)


def _add_in_pieces(total, left, right, pieces):
    (classes, width), count = total.shape, ops.shape(left)[0]
    if pieces == 1:
        return total + _outer(left, right)
    size = classes // pieces

    def add(start, size, total):
        product = _outer(ops.slice(left, (0, start), (count, size)), right)
        product = product + ops.slice(total, (start, 0), (size, width))
        return ops.slice_update(total, (start, 0), product)

    total = ops.fori_loop(0, pieces, lambda i, x: add(i * size, size, x), total)
    rest = classes - pieces * size
    return add(pieces * size, rest, total) if rest else total


def _outer(left, right):
    transposed = ops.transpose(left)
    if keras.backend.backend() == "jax" and runs_on_processor():
        import jax

        # Without its copy XLA takes a third longer for the product.
        transposed = jax.lax.optimization_barrier(transposed)
    return ops.cast(ops.matmul(transposed, right), "float32")


def gradient_values(gradient):
    """The entries of a gradient; TensorFlow keeps those of a lookup apart."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        if isinstance(gradient, tf.IndexedSlices):
            return gradient.values
    return gradient


def run_if(condition, then, otherwise):
    """Calls one of two functions that change variables and return nothing."""
    if keras.backend.backend() != "tensorflow":
        then() if condition else otherwise()
        return
    import tensorflow as tf

    if not tf.distribute.has_strategy():
        tf.cond(condition, _returning_nothing(then), _returning_nothing(otherwise))
        return
    # An optimizer lets the replicas meet, which is not possible within a branch that
    # each takes by itself: they agree, and take it together.
    context = tf.distribute.get_replica_context()
    against = tf.cast(tf.logical_not(condition), "int32")
    against = context.all_reduce(tf.distribute.ReduceOp.SUM, against)
    context.merge_call(_run_on_all, args=(against, then, otherwise))


def _run_on_all(strategy, against, then, otherwise):
    import tensorflow as tf

    def on_all(function):
        return lambda: strategy.extended.call_for_each_replica(_call, args=(function,))

    first = strategy.experimental_local_results(against)[0]
    tf.cond(first == 0, on_all(then), on_all(otherwise))


def _call(function):
    function()


def _returning_nothing(function):
    return lambda: _call(function)


def value_and_gradient(function, x):
    """`function(x)` and the gradient of its sum with respect to `x`.

    Args:
        function: takes a tensor like `x` and returns a tensor.
        x: a float tensor; nothing flows back through it.

    Returns:
        `(value, gradient)`, both cut off from further differentiation.
    """
    x = ops.stop_gradient(x)
    value, gradient = _BACKENDS[keras.backend.backend()](function, x)
    return ops.stop_gradient(value), ops.stop_gradient(gradient)


def _jax(function, x):
    import jax

    value, pull_back = jax.vjp(function, x)
    return value, pull_back(ops.ones_like(value))[0]


def _torch(function, x):
    import torch

    with torch.enable_grad():
        x = x.requires_grad_()
        value = function(x)
        return value, torch.autograd.grad(value.sum(), x)[0]


def _tensorflow(function, x):
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(x)
        value = function(x)
    return value, tape.gradient(value, x)


_BACKENDS = {"jax": _jax, "torch": _torch, "tensorflow": _tensorflow}


def put_at(values, ids, new):
    """`values` (N, V) with `new` (N, k) at the ids (N, k) of each row."""
    count, k = ops.shape(ids)[0], ids.shape[1]
    rows = ops.repeat(ops.arange(count, dtype="int32"), k)
    where = ops.stack([rows, ops.reshape(ids, (-1,))], axis=-1)
    return ops.scatter_update(values, where, ops.reshape(new, (-1,)))
