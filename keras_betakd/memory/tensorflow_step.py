"""The memory of a step on TensorFlow: its graph is walked in order, from shapes."""

import collections
import math

import keras
import tensorflow as tf

# Operations whose result is the memory of their first input.
_VIEWS = frozenset(
    "Identity Reshape Squeeze ExpandDims StopGradient PreventGradient EnsureShape "
    "IdentityN Snapshot".split()
)
# Operations that write their result over an input that nothing else needs.
_OVER_INPUTS = frozenset(
    "Abs Add AddN AddV2 BiasAdd Cast ClipByValue Cos Div Elu Erf Erfc Exp Expm1 Gelu "
    "GeluGrad Inv Log Log1p LogSoftmax LogicalAnd LogicalNot LogicalOr Maximum Minimum "
    "Mul Neg Pow RealDiv Reciprocal Relu ReluGrad Rsqrt RsqrtGrad Select SelectV2 "
    "Sigmoid SigmoidGrad Sign Sin Softmax Sqrt SqrtGrad Square SquaredDifference Sub "
    "Tanh TanhGrad TensorScatterAdd TensorScatterUpdate While StatelessWhile".split()
)
_NO_MEMORY = frozenset("Arg Const Placeholder ReadVariableOp VarHandleOp".split())
_BODIES = {
    "While": ("body",),
    "StatelessWhile": ("body",),
    "If": ("then_branch", "else_branch"),
    "StatelessIf": ("then_branch", "else_branch"),
    "PartitionedCall": ("f",),
    "StatefulPartitionedCall": ("f",),
}
_BACKWARD = "gradient_tape"


def traced_step(distiller, batch, trained=None):
    """`(peak, activations)`, see `StepMemory`.

    Args:
        distiller, batch, trained: as for `step_memory`.
    """

    def gradients(data):
        x, y, sample_weight = data
        with tf.GradientTape() as tape:
            y_pred = distiller(x, training=True)
            loss = distiller.compute_loss(x, y, y_pred, sample_weight, training=True)
            loss = distiller.optimizer.scale_loss(loss)
        return tape.gradient(loss, [v.value for v in trained])

    step = distiller.train_step if trained is None else gradients
    specs = keras.tree.map_structure(
        lambda x: None if x is None else tf.TensorSpec(x.shape, x.dtype), batch
    )
    traced = tf.function(lambda data: step(data), autograph=False)
    graph = traced.get_concrete_function(specs).graph
    walk = _Walk(graph)
    return walk.peak, walk.kept


class _Walk:
    """Goes through a graph in the order in which it was made, and counts what is held.

    Attributes:
        peak: bytes held at the fullest moment.
        kept: bytes that the operations of a gradient read of those before them.
    """

    def __init__(self, graph):
        self._graph = graph
        self._operations = _needed(graph)
        self._rows = _summed_rows(self._operations)
        every = [t for op in self._operations for t in op.inputs] + graph.outputs
        self._reads = collections.Counter(t.ref() for t in every)
        self._memory = {}
        self._kept = {}
        self._now = self.peak = 0
        for operation in self._operations:
            self._run(operation)
        self.kept = sum(self._kept.values())

    def _run(self, operation):
        read = [self._memory.get(t.ref()) for t in operation.inputs]
        self._note_kept(operation, read)
        made = []
        if operation.type in _VIEWS:
            for source, tensor in zip(read, operation.outputs, strict=False):
                self._hold(tensor, source)
        elif operation.type not in _NO_MEMORY:
            made = [self._make(operation, t, read) for t in operation.outputs]
            inside = [
                self._inside(operation, k) for k in _BODIES.get(operation.type, ())
            ]
            self.peak = max(self.peak, self._now + max(inside, default=0))
        for memory in (*read, *made):
            if memory is not None:
                memory.reads -= 1
                if not memory.reads:
                    self._now -= memory.size

    def _note_kept(self, operation, read):
        if _BACKWARD not in operation.name:
            return
        for memory in read:
            if memory is not None and not memory.is_backward:
                self._kept[id(memory)] = memory.size

    def _make(self, operation, tensor, read):
        size = _bytes_of(tensor, self._rows)
        if operation.type in _OVER_INPUTS:
            for memory in read:
                if memory is not None and memory.size == size:
                    if memory.reads == sum(x is memory for x in read):
                        self._hold(tensor, memory)
                        return None
        memory = _Memory(size, _BACKWARD in operation.name)
        self._now += size
        self._hold(tensor, memory)
        memory.reads += 1  # until the operation has run
        return memory

    def _hold(self, tensor, memory):
        if memory is not None:
            self._memory[tensor.ref()] = memory
            memory.reads += self._reads[tensor.ref()]

    def _inside(self, operation, key):
        """The peak of what runs within an operation."""
        name = operation.get_attr(key).name
        return _Walk(_function_graph(self._graph, name)).peak


class _Memory:
    """Bytes in one place, and how many operations have yet to read them."""

    def __init__(self, size, is_backward):
        self.size, self.is_backward, self.reads = size, is_backward, 0


def _needed(graph):
    """The operations that run, in the order in which they were made."""
    operations = graph.get_operations()
    found = set()
    rest = [t.op for t in graph.outputs] + list(graph.control_outputs)
    rest += [op for op in operations if op.op_def.is_stateful]
    while rest:
        operation = rest.pop()
        if operation.name not in found:
            found.add(operation.name)
            rest += [t.op for t in operation.inputs]
            rest += operation.control_inputs
    return [op for op in operations if op.name in found]


def _summed_rows(operations):
    """The rows of the largest sum by segments; 0 if there is none.

    The gradient of an embedding has one row for each token, and those of equal tokens
    are summed for the optimizer: the only rows whose number is not known before.
    """
    sums = [op for op in operations if op.type == "UnsortedSegmentSum"]
    return max((op.inputs[0].shape[0] or 0 for op in sums), default=0)


def _bytes_of(tensor, rows):
    if tensor.dtype in (tf.resource, tf.variant, tf.string):
        return 0
    shape = tensor.shape
    if rows and shape.rank and shape[0] is None:
        shape = tf.TensorShape([rows, *shape[1:]])
    if not shape.is_fully_defined():
        # Those that TensorFlow computes shapes with are a few integers long.
        return 0 if tensor.dtype.is_integer else _refuse(tensor)
    return math.prod(shape) * tensor.dtype.size


def _refuse(tensor):
    raise ValueError(
        "TensorFlow knows the shape of an array only as the step runs, so its memory "
        "cannot be planned. Make the plan with another backend, `KERAS_BACKEND=torch` "
        f"or `jax`. Received: shape={tensor.shape} of {tensor.op.name!r}"
    )


def _function_graph(graph, name):
    """The graph of a function by its name, which a graph around it may define."""
    while name not in graph._functions:
        graph = graph.outer_graph
    return graph._functions[name].graph
