"""The memory of a step on PyTorch: run on tensors without data, whose bytes count."""

import gc
import weakref

import keras
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_ATEN = torch.ops.aten
_INDEXING = (_ATEN.index.Tensor, _ATEN.index_put.default, _ATEN.index_put_.default)
_ANY = (_ATEN.any.default, _ATEN.any.dim)
# An accelerator's allocator hands out memory in such pieces.
_PIECE = 512


def counted_step(distiller, batch, trained=None):
    """`(peak, activations)`, see `StepMemory`.

    The step runs as always, in PyTorch's `FakeTensorMode`: each operation gives tensors
    of the right shape, on the right device, without data. The variables have such
    values, too, inside a scope; their own values are not touched.

    Args:
        distiller, batch, trained: as for `step_memory`.
    """
    # Layers leave cycles that hold tensors until Python looks for them. It does so here
    # as in a step that runs, from the same start.
    gc.collect()
    learned = distiller.trainable_variables if trained is None else trained
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    # In one thread, where the scope and the modes are seen.
    in_one_thread = torch.autograd.set_multithreading_enabled(False)
    with in_one_thread, fakes, _LiveBytes() as live:
        ids = {id(v) for v in learned}
        values = [(v, _fake(v, id(v) in ids)) for v in _variables(distiller)]
        device = values[0][1].device
        x, y, sample_weight = keras.tree.map_structure(
            lambda spec: _fake_input(spec, device), batch
        )
        scope = keras.StatelessScope(state_mapping=values, collect_losses=True)
        del values
        held = live.now
        with scope:
            # Keras' trainer drops the gradients of the last step after the forward
            # pass of the next one.
            for variable in learned:
                variable.value.grad = torch.empty_like(variable.value)
            before = live.now
            live.peak = before
            y_pred = distiller(x, training=True)
            activations = live.now - before
            distiller.zero_grad()
            loss = distiller.compute_loss(x, y, y_pred, sample_weight, training=True)
            distiller.optimizer.scale_loss(loss).backward()
            if trained is None:
                gradients = [variable.value.grad for variable in learned]
                with torch.no_grad():
                    distiller.optimizer.apply(gradients, learned)
                del gradients
            distiller.compute_metrics(x, y, y_pred, sample_weight)
        return live.peak - held, activations


def _variables(distiller):
    """All variables, each once."""
    parts = distiller, distiller.teacher, distiller.optimizer
    found = [v for part in parts for v in part.variables]
    found += distiller.metrics_variables
    return list({id(v): v for v in found}.values())


def _fake(variable, learns):
    value = variable.value
    fake = torch.empty(value.shape, dtype=value.dtype, device=value.device)
    return fake.requires_grad_() if learns else fake


def _fake_input(spec, device):
    if spec is None:
        return None
    return torch.empty(spec.shape, dtype=getattr(torch, spec.dtype), device=device)


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, and answers for their values.

    Values that Python reads are those of a step in which nothing is unusual: all
    answers are supervised, everything is finite, no logits are tied.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._storages = {}
        self._from_any = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is _ATEN._local_scalar_dense.default:
            (x,) = args
            is_any = x.untyped_storage()._cdata in self._from_any
            return not is_any if x.dtype == torch.bool else 1
        if function is _ATEN.nonzero.default:
            return self._counted(_places(args[0]))
        if function in _INDEXING:
            args = (args[0], _without_masks(args[1]), *args[2:])
        found = function(*args, **(kwargs or {}))
        for x in tree_leaves(found):
            if isinstance(x, torch.Tensor):
                self._counted(x)
        if function in _ANY:
            self._from_any.add(found.untyped_storage()._cdata)
        return found

    def _counted(self, x):
        storage = x.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._storages:
            if x.device.type != "cpu":
                size = -(-size // _PIECE) * _PIECE
            self._storages[key] = weakref.ref(
                storage, lambda _: self._forget(key, size)
            )
            self.now += size
            self.peak = max(self.peak, self.now)
        return x

    def _forget(self, key, size):
        self._from_any.discard(key)
        del self._storages[key]
        self.now -= size


def _places(mask):
    """As many places as a mask has entries: (n, axes)."""
    shape = mask.numel(), mask.dim()
    return torch.empty(shape, dtype=torch.int64, device=mask.device)


def _without_masks(indices):
    """Indices of `x[...]`, with all places in the stead of masks."""
    found = []
    for index in indices:
        if index is not None and index.dtype == torch.bool:
            found += _places(index).unbind(1)
        else:
            found.append(index)
    return found
