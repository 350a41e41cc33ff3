"""Operations that are written differently for each backend.

Besides `keras_betakd.distribution.replicas` and `keras_betakd.memory`, which counts the
memory of a step, this is the only module that names a backend. Most functions serve the
fused head (`keras_betakd.head_loss`), which needs the gradient of an energy inside the
forward pass, for which Keras has no public function, and elementwise operations without
additional memory on PyTorch.
"""

import contextlib
import math
import os

import keras
from keras import ops

# JAX's own default, in seconds: it keeps no program that compiles faster.
_SLOW_PROGRAM = 1.0
# Size of the pieces in which XLA adds a matrix product to an array on a CPU.
_PIECE_BYTES = 2**25
# Size of the parts of a head's kernel that PyTorch multiplies by at a time on a CPU.
_CACHED_BYTES = 2**21


def runs_eagerly():
    """Whether each operation runs on its own and writes its result to memory.

    XLA (JAX and TensorFlow) fuses elementwise operations; PyTorch in eager mode, Keras'
    default there, does not.
    """
    return keras.backend.backend() == "torch"


def runs_on_processor():
    """Whether arrays are on a CPU and not on an accelerator."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.default_backend() == "cpu"
    if backend == "torch":
        return ops.zeros(()).device.type == "cpu"
    import tensorflow as tf

    return not tf.config.list_logical_devices("GPU")


def loops_write_over_what_they_read():
    """Whether a loop may write its results over the array that it reads.

    On JAX, XLA would copy the whole array in each step.
    """
    return keras.backend.backend() == "tensorflow"


def takes_columns_for_biases():
    """Whether `keras.ops.add` mistakes (B, 1) beside (B, N) for a bias if B = N."""
    return keras.backend.backend() == "tensorflow"


def is_argmax(x, classes):
    """Whether the first largest entry of each row of `x` is at the given index.

    `keras.ops.argmax` reduces pairs of value and index, which takes a CPU four to ten
    times as long as the reductions used here.

    Args:
        x: (n, V); PyTorch changes and restores it on a CPU.
        classes: (n,) int32.

    Returns:
        (n,) bool.
    """
    if runs_eagerly():
        if x.device.type == "cpu":
            return _is_argmax_in_place(x, classes)
        return x.argmax(dim=-1) == classes
    columns, indices = classes[:, None], ops.arange(x.shape[-1], dtype="int32")
    own, largest = entries_at(x, classes), ops.max(x, axis=-1, keepdims=True)
    earlier = ops.logical_and(x == largest, indices < columns)
    # On a CPU, XLA is fastest at sums and maxima of floats.
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


def largest_or_nan(x):
    """The largest entry along the last axis; NaN where there is any.

    One pass over `x` finds NaN and infinity, where each operation is one.
    """
    largest = ops.max(x, axis=-1)
    if keras.backend.backend() != "tensorflow":
        return largest  # NaN is larger than any number
    return ops.where(ops.any(ops.isnan(x), axis=-1), float("nan"), largest)


def entries_at(x, classes):
    """The entry of `x` (n, V) at one class of each row, (n,) int32, as (n,)."""
    if runs_eagerly():
        return x.gather(-1, classes[:, None].long())[:, 0]
    return ops.squeeze(ops.take_along_axis(x, classes[:, None], axis=-1), axis=-1)


def log_of_largest_share(x, largest, shares):
    """log max softmax(x): (n, V) to (n, 1).

    Args:
        x: (n, V).
        largest: max x, (n, 1).
        shares: callable that returns softmax(x).
    """
    if runs_eagerly():
        return ops.log(ops.max(shares(), axis=-1, keepdims=True))
    # XLA shares this reduction with the softmax and needs no other.
    return -ops.log(ops.sum(ops.exp(x - largest), axis=-1, keepdims=True))


def logits_of(rows, kernel):
    """rows @ kernel^T for (..., H) and (V, H), without gradient."""
    if not runs_eagerly() or rows.device.type != "cpu":
        return ops.matmul(rows, ops.transpose(kernel))
    import torch

    # 7 to 30 % faster than all classes at once, which do not fit into the cache.
    size = max(1, _CACHED_BYTES // (kernel.element_size() * kernel.shape[1]))
    flat = rows.reshape(-1, rows.shape[-1])
    logits = rows.new_empty((flat.shape[0], kernel.shape[0]))
    for start in range(0, kernel.shape[0], size):
        some = slice(start, start + size)
        torch.mm(flat, kernel[some].T, out=logits[:, some])
    return logits.reshape(*rows.shape[:-1], kernel.shape[0])


def rows_at(x, numbers):
    """Rows of each of N arrays by their numbers: (N, P, D), int (N, Q) to (N, Q, D).

    On TensorFlow `ops.take_along_axis` makes an index of each of the Q * D values. The
    rows of all arrays as one would, on JAX, have to be brought to every device that the
    arrays are spread over.
    """
    if keras.backend.backend() == "jax":
        return ops.take_along_axis(x, numbers[..., None], axis=1)
    count, length, width = ops.shape(x)
    start = ops.arange(count, dtype="int32")[:, None] * length
    return ops.take(ops.reshape(x, (-1, width)), numbers + start, axis=0)


def add_at(x, classes, increments):
    """`x` (n, V) with an increment added to the entry at one class of each row.

    PyTorch changes `x` in place.

    Args:
        classes: (n,) int32.
        increments: (n,).
    """
    if runs_eagerly():
        return x.scatter_add_(-1, classes[:, None].long(), increments[:, None])
    rows = ops.arange(ops.shape(classes)[0], dtype="int32")
    entries = entries_at(x, classes)
    indices = ops.stack([rows, classes], axis=-1)
    return ops.scatter_update(x, indices, entries + increments)


def put_at(x, classes, values):
    """`x` (n, V) with `values` (n, k) in place of the entries at k classes of each row.

    Args:
        classes: (n, k) int32.
    """
    count, k = ops.shape(classes)[0], classes.shape[1]
    rows = ops.repeat(ops.arange(count, dtype="int32"), k)
    indices = ops.stack([rows, ops.reshape(classes, (-1,))], axis=-1)
    return ops.scatter_update(x, indices, ops.reshape(values, (-1,)))


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
    """total + factors * x.

    Args:
        total: (n, V), which PyTorch changes in place; `None` for zeros.
        factors: (n, 1).
        x: (n, V).
        memory: (n, V), no longer needed, to which PyTorch writes the result instead.
    """
    if not runs_eagerly():
        return factors * x if total is None else total + factors * x
    import torch

    if total is None:
        return torch.mul(factors, x, out=memory)
    return torch.addcmul(total, factors, x, out=total if memory is None else memory)


def add_outer(total, left, right):
    """total + left^T @ right in float32.

    Args:
        total: (V, H) float32, which PyTorch changes in place; `None` for zeros.
        left, right: (n, V) and (n, H), of one dtype.
    """
    if total is None:
        return _outer(left, right)
    if runs_eagerly():
        if left.dtype == total.dtype:
            return total.addmm_(left.T, right)  # holds one array of its size, not three
        return total.add_(_outer(left, right))
    # On an accelerator XLA accumulates the product in place; on a CPU it writes the
    # product to memory first, so it is added in pieces. Where devices share the array,
    # pieces would not match their parts of it.
    at_once = keras.distribution.distribution() or not runs_on_processor()
    pieces = 1 if at_once else -(-4 * math.prod(total.shape) // _PIECE_BYTES)
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

        # Writes the transposed array to memory: XLA takes a third longer without it.
        transposed = jax.lax.optimization_barrier(transposed)
    return ops.cast(ops.matmul(transposed, right), "float32")


def gradient_values(gradient):
    """The entries of a gradient; on TensorFlow that of a lookup is `IndexedSlices`."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        if isinstance(gradient, tf.IndexedSlices):
            return gradient.values
    return gradient


def run_if(condition, then, otherwise):
    """Calls one of two functions, which change variables and return nothing.

    Args:
        condition: bool scalar.
        then, otherwise: functions without arguments.
    """
    if keras.backend.backend() != "tensorflow":
        then() if condition else otherwise()
        return
    import tensorflow as tf

    if not tf.distribute.has_strategy():
        tf.cond(condition, _returning_nothing(then), _returning_nothing(otherwise))
        return
    # An optimizer synchronises the replicas, which is not possible inside a branch that
    # each replica takes on its own. So they first agree on the branch and then take it
    # together: `then` if the condition holds on all of them.
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


def keep_compiled_programs():
    """Lets JAX keep compiled programs on disk, so that the next process loads them.

    JAX's settings come first, by environment variables or `jax.config`: a folder that
    is set stays, and a cache that is turned off stays off. Where the folder of the
    user's caches cannot be written to, nothing changes.
    """
    if keras.backend.backend() != "jax":
        return
    import jax

    is_set = jax.config.jax_compilation_cache_dir is not None
    if is_set or not jax.config.jax_enable_compilation_cache:
        return
    folder = _cache_folder()
    if folder is None:
        return
    # The many small programs around the step take seconds together.
    threshold = "jax_persistent_cache_min_compile_time_secs"
    is_default = getattr(jax.config, threshold) == _SLOW_PROGRAM
    if is_default and threshold.upper() not in os.environ:
        jax.config.update(threshold, 0.0)
    jax.config.update("jax_compilation_cache_dir", folder)


def _cache_folder():
    """The folder of compiled programs, made if need be; `None` if it cannot be."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = os.path.join(home, "keras_betakd", "jax")
    if not os.path.isabs(folder):  # without a home
        return None
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


def whole_second_runs():
    """A context of calls of `keras.remat` whose functions run to their end both times.

    PyTorch leaves the second run by an error once it has what it needs. Keras refers to
    that error from the frames of the layers that it passes, which keep their tensors
    until Python next looks for cycles.
    """
    if keras.backend.backend() != "torch":
        return contextlib.nullcontext()
    import torch.utils.checkpoint

    return torch.utils.checkpoint.set_checkpoint_early_stop(False)


def random_state():
    """State of the backend's own random generators, which layers without a seed use.

    Returns:
        Dict of name to bytes, as NumPy arrays; empty but on PyTorch.
    """
    if keras.backend.backend() != "torch":
        return {}
    import torch

    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        devices = enumerate(torch.cuda.get_rng_state_all())
        states |= {f"cuda_{i}": state for i, state in devices}
    return {name: state.numpy() for name, state in states.items()}


def set_random_state(states):
    """Sets what `random_state` returned; devices that this machine lacks are left."""
    if keras.backend.backend() != "torch":
        return
    import torch

    for name, state in states.items():
        kind, _, index = name.partition("_")
        if kind == "cpu":
            torch.set_rng_state(torch.as_tensor(state, device="cpu"))
        elif int(index) < torch.cuda.device_count():
            state = torch.as_tensor(state, device="cpu")
            torch.cuda.set_rng_state(state, int(index))


def value_and_gradient(function, x):
    """`function(x)` and the gradient of its sum with respect to `x`, 0 if it has none.

    Args:
        function: takes a tensor like `x` and returns a tensor.
        x: a float tensor.

    Returns:
        `(value, gradient)`, both without gradient.
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
        if not value.requires_grad:  # nothing in it depends on `x`
            return value, torch.zeros_like(x)
        (gradient,) = torch.autograd.grad(
            value.sum(), x, allow_unused=True, materialize_grads=True
        )
        return value, gradient


def _tensorflow(function, x):
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(x)
        value = function(x)
    none = tf.UnconnectedGradients.ZERO
    return value, tape.gradient(value, x, unconnected_gradients=none)


_BACKENDS = {"jax": _jax, "torch": _torch, "tensorflow": _tensorflow}
