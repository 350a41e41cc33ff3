"""`BlockRemat`: a model that keeps the inputs of its blocks alone, and none within.

This is gradient checkpointing (Chen et al. 2016, arXiv 1604.06174) by `keras.remat`:
the gradient computes each block a second time from its inputs.
"""

import contextlib
import enum
import functools

import keras
from keras import ops

from keras_betakd.backends import whole_second_runs
from keras_betakd.models.hooks import replaced
from keras_betakd.models.layers import sublayers


class BlockRemat:
    """Lets the blocks of a model be computed again for their gradient.

    Numbers stay the same: dropout draws the masks of the first pass again, losses that
    a block adds are added once. A block keeps its activations while something within
    it is read (attention, an inner layer), since that must come from the one pass that
    the loss sees.

    Args:
        view: a `ModelView`.
        read: the layers whose outputs are read while the model runs.

    Raises:
        ValueError: the blocks of the model are not known, one has batch normalisation,
            or something is read within each of them.
    """

    def __init__(self, view, read=()):
        blocks, towers = view.blocks(), view.vision_tower()
        of_tower = {id(x) for layer in towers for x in (layer, *sublayers(layer))}
        self._tower = [_Block(x) for x in blocks if id(x) in of_tower]
        self._others = [_Block(x) for x in blocks if id(x) not in of_tower]
        self._tower_variables = [v for layer in towers for v in layer.variables]
        for layer in blocks:
            _expect_no_batch_normalisation(layer)
        found = {id(layer) for layer in read}
        if all(found & {id(x) for x in sublayers(b.layer)} for b in self._others):
            raise ValueError(
                "`remat=True` would change nothing: attention or inner layers are read "
                f"within all {len(self._others)} blocks of {type(view.model).__name__},"
                " and such blocks keep their activations. Read fewer of them, or leave "
                "`remat` out."
            )

    @contextlib.contextmanager
    def applied(self):
        """A context in which the model runs in training."""
        # A tower that does not train holds nothing for a gradient as it is.
        trains = any(v.trainable for v in self._tower_variables)
        blocks = self._others + (self._tower if trains else [])
        with whole_second_runs(), contextlib.ExitStack() as stack:
            for block in blocks:
                stack.enter_context(replaced(block.layer, block.call))
            yield


def _expect_no_batch_normalisation(block):
    for layer in (block, *sublayers(block)):
        if isinstance(layer, keras.layers.BatchNormalization):
            raise ValueError(
                "`remat=True` would count each batch twice in the moving means of "
                f"`{layer.path or layer.name}`, a batch normalisation in a block of "
                "the student. Leave such blocks out of the `blocks` of its view."
            )


class _Block:
    """A block and what a second pass through it must not change."""

    def __init__(self, layer):
        self.layer = layer

    @functools.cached_property
    def inner(self):
        return sublayers(self.layer)

    @functools.cached_property
    def runner(self):
        return _Runner(self.layer)

    @functools.cached_property
    def random(self):
        """The states of its random generators, which are no weights."""
        weights = {id(w) for w in self.layer.weights}
        return [v for v in self.layer.variables if id(v) not in weights]

    def call(self, compute, *args, **kwargs):
        """What `compute`, the layer's own call, returns; see `replaced`."""
        if any("call" in vars(x) for x in self.inner):
            return compute(*args, **kwargs)
        again = _SecondPass(self, compute, args, kwargs)
        return again.outputs(keras.remat(again.run)(*again.tensors))


class _SecondPass:
    """One call of a block, as a function of float tensors that can be run again.

    TensorFlow takes nothing else for arguments of such a function. Everything else
    (masks, positions, flags) does not depend on weights and is the same in both runs.
    """

    def __init__(self, block, compute, args, kwargs):
        self._block, self._compute, self._arguments = block, compute, (args, kwargs)
        self._training = kwargs.get("training", True)
        self._values = keras.tree.flatten(self._arguments)
        self._floats = [i for i, x in enumerate(self._values) if _is_float(x)]
        self._start = [ops.copy(state) for state in block.random]
        self._structure = None
        self.tensors = [self._values[i] for i in self._floats]
        self._masks = [_Mask.of(x) for x in self.tensors]

    def run(self, *tensors):
        """The flat tensors of the block's outputs, its losses, and random states."""
        is_first, before = self._structure is None, [ops.copy(v) for v in self._random]
        for state, value in zip(self._random, self._start, strict=True):
            state.assign(value)
        try:
            with _added_losses([self._block.layer, *self._block.inner]) as losses:
                output = self._block.runner(
                    function=self._bound(tensors), training=self._training
                )
            states = [ops.copy(v) for v in self._random]
        finally:
            if not is_first:
                for state, value in zip(self._random, before, strict=True):
                    state.assign(value)
        found = [x for x in keras.tree.flatten(output) if ops.is_tensor(x)]
        if is_first:  # without the tensors, which would keep themselves alive
            structure = keras.tree.map_structure(_Place.of, output)
            self._structure = structure, len(found), len(losses)
        return [*found, *losses, *states]

    def outputs(self, values):
        """The block's output, after its first run; adds its losses and sets states."""
        structure, count, losses = self._structure
        for loss in values[count : count + losses]:
            self._block.layer.add_loss(loss)
        # JAX: those set within the function are of its trace alone.
        for state, value in zip(self._random, values[count + losses :], strict=True):
            state.assign(value)
        found = iter(values[:count])
        return keras.tree.map_structure(
            lambda x: next(found) if x is _Place.TENSOR else x, structure
        )

    @property
    def _random(self):
        return self._block.random

    def _bound(self, tensors):
        """The block's call on its arguments, with these in place of float tensors."""
        values = list(self._values)
        for i, tensor, mask in zip(self._floats, tensors, self._masks, strict=True):
            values[i] = tensor if mask is None else mask(tensor)
        args, kwargs = keras.tree.pack_sequence_as(self._arguments, values)
        return lambda: self._compute(*args, **kwargs)


class _Runner(keras.layers.Layer):
    """Runs a function as the call of a layer.

    The second run comes outside of any layer, on PyTorch in the backward pass and even
    in another thread. Precision and `training`, which layers within take from those
    around them, are set by this one. It does not hold the function, whose tensors would
    stay in memory for as long as it.
    """

    def __init__(self, layer):
        super().__init__(dtype=layer.dtype_policy, name=layer.name)
        self.built = True

    def call(self, inputs=None, function=None, training=None):
        return function()


class _Mask(keras.layers.Layer):
    """The mask that Keras has attached to a tensor, to be attached to another.

    Layers within a block may read it, and the arguments of the second run are new
    tensors without it.
    """

    def __init__(self):
        super().__init__(autocast=False)
        self.supports_masking = self.built = True
        self._found = None

    @classmethod
    def of(cls, tensor):
        """That of a tensor, or `None`."""
        mask = cls()
        mask(tensor)
        return None if mask._found is None else mask

    def call(self, x, mask=None):
        if self._found is None:
            self._found = mask
        return x

    def compute_mask(self, x, previous_mask):
        return self._found


class _Place(enum.Enum):
    """Stands for a tensor in the structure of what a block returns."""

    TENSOR = 0

    @classmethod
    def of(cls, x):
        return cls.TENSOR if ops.is_tensor(x) else x


@contextlib.contextmanager
def _added_losses(layers):
    """Collects what layers pass to `add_loss` instead of adding it."""
    found = []
    for layer in layers:
        layer.add_loss = lambda loss: found.extend(keras.tree.flatten(loss))
    try:
        yield found
    finally:
        for layer in layers:
            del layer.add_loss


def _is_float(x):
    return ops.is_tensor(x) and keras.backend.is_float_dtype(
        keras.backend.standardize_dtype(x.dtype)
    )
