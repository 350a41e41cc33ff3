"""The plan of a training step's memory, and what would make it smaller."""

import contextlib
import dataclasses
import math

import keras

from keras_betakd.distillation.finite_steps_optimizer import innermost
from keras_betakd.distillation.rematerialized import remat_of
from keras_betakd.distillation.summary import bytes_of_arrays, parts_of
from keras_betakd.distillation.training_data import as_batch, expect_compiled
from keras_betakd.distribution.devices import parts_of_batch, shape_on_device
from keras_betakd.head_loss.tiles import tile_bytes
from keras_betakd.memory.plan import MemoryPlan, MemorySaving
from keras_betakd.memory.step import expect_countable, step_memory
from keras_betakd.models.layers import sublayers
from keras_betakd.preprocessing.batches import by_model

_NAMED = 3
# What `cache_teacher` stores of a text model, by the `features` of energies.
_CACHED = (None, "hidden_states")


def plan_of(distiller, batch, savings):
    """As `BetaKDDistiller.memory_plan`."""
    expect_compiled(distiller, "memory_plan")
    expect_countable(distiller)
    batch = _as_shapes(distiller, batch)
    plan = _plan(distiller, batch)
    if not savings:
        return plan
    found = [
        MemorySaving(option, plan.peak - peak)
        for option, peak in _OtherPlans(distiller, batch, plan).peaks()
    ]
    found.sort(key=lambda saving: -saving.bytes)
    found = [saving for saving in found if saving.bytes > 0]
    return dataclasses.replace(plan, savings=tuple(found[:_NAMED]))


def _as_shapes(distiller, batch):
    """The batch in the distiller's form, with a `keras.KerasTensor` for each array."""
    batch = batch if isinstance(batch, tuple) else (batch,)
    leaves = keras.tree.flatten(batch)
    if not any(isinstance(leaf, keras.KerasTensor) for leaf in leaves):
        batch = as_batch(distiller, *batch)
    x, y, sample_weight = (*batch, None, None)[:3]
    leaves = [leaf for leaf in keras.tree.flatten((x, y)) if leaf is not None]
    if y is None or any(None in leaf.shape for leaf in leaves):
        raise ValueError(
            "The memory plan needs the shapes of a batch and of its labels: raw "
            "records, or `(x, y)` or `(x, y, sample_weight)` of arrays or of "
            "`keras.KerasTensor`s without `None` in their shapes. Received: labels "
            f"{y}, shapes {[leaf.shape for leaf in leaves]}"
        )
    return keras.tree.map_structure(_shape_of, (by_model(x), y, sample_weight))


def _shape_of(x):
    if x is None:
        return None
    dtype = keras.backend.standardize_dtype(x.dtype)
    return keras.KerasTensor(tuple(x.shape), dtype=dtype)


def _plan(distiller, batch):
    betas = distiller.optimizer.beta_optimizer
    of_betas = [] if betas is None else betas.variables
    ids = {id(v) for v in of_betas}
    slots = [v for v in distiller.optimizer.variables if id(v) not in ids]
    parts = parts_of(distiller)
    counted = {id(v) for part in parts.values() for v in part}
    others = [*distiller.variables, *distiller.metrics_variables]
    others = {id(v): v for v in others if id(v) not in counted}
    parts["metrics and counters"] = list(others.values())
    step = step_memory(distiller, batch)
    plan = MemoryPlan(
        weights={name: _bytes(part) for name, part in parts.items()},
        optimizer=_bytes(slots),
        beta_optimizer=_bytes(of_betas),
        batch=_batch_bytes(batch),
        gradients=_bytes(distiller.trainable_variables),
        activations=step.activations,
        head=_head_bytes(distiller, batch),
        peak=step.peak,
        devices=_device_count(),
    )
    return dataclasses.replace(plan, peak=plan.held + step.peak)


def _bytes(variables):
    return bytes_of_arrays((shape_on_device(v), v.dtype) for v in variables)


def _batch_bytes(batch):
    found = [x for x in keras.tree.flatten(batch) if x is not None]
    return bytes_of_arrays((x.shape, x.dtype) for x in found) // parts_of_batch()


def _device_count():
    distribution = keras.distribution.distribution()
    return 1 if distribution is None else math.prod(distribution.device_mesh.shape)


def _head_bytes(distiller, batch):
    """The bytes of a tile; or of all logits of all models and of their gradient."""
    x, y, _ = batch
    count, view = math.prod(y.shape) // parts_of_batch(), distiller.student_view
    if distiller.fuses(x):
        return tile_bytes(view.logit_size, view.hidden_dim, count)
    if x.get("student_positions") is not None:
        classes = view.logit_size
    else:
        classes = view.logits_shape(x["student"])[-1]
    return 4 * classes * count * (2 + len(distiller.teacher_parts))


class _OtherPlans:
    """What the peak would be if the distiller were another one.

    Args:
        distiller: the distiller, which is left as it is.
        batch: its batch, as shapes.
        plan: its `MemoryPlan`.
    """

    def __init__(self, distiller, batch, plan):
        self._distiller, self._batch, self._plan = distiller, batch, plan

    def peaks(self):
        """Pairs of an option and the bytes of its peak, for those that apply."""
        makers = (
            *(self._remat, self._smaller_batch, self._shorter, self._cached),
            *(self._fused, self._lora, self._smaller_teacher),
        )
        return [pair for make in makers if (pair := make()) is not None]

    def _peak(self, batch=None, trained=None):
        batch = self._batch if batch is None else batch
        held = self._plan.held - self._plan.batch + _batch_bytes(batch)
        return held + step_memory(self._distiller, batch, trained).peak

    def _remat(self):
        distiller = self._distiller
        if distiller.remat or keras.backend.backend() == "tensorflow":
            return None
        try:
            reader = distiller.student_reader
            remat = remat_of(distiller.student_view, reader, True)
        except ValueError:  # the student's blocks are not known, or all are read
            return None
        with _with_attribute(distiller, "_student_remat", remat):
            return "remat=True", self._peak()

    def _smaller_batch(self):
        shapes = [x.shape for x in keras.tree.flatten(self._batch) if x is not None]
        size = self._batch[1].shape[0]
        parts = parts_of_batch()
        if size < 2 * parts or size % (2 * parts) or {s[0] for s in shapes} != {size}:
            return None
        half = _resized(self._batch, 0, size, size // 2)
        every = innermost(self._distiller.optimizer).gradient_accumulation_steps
        sums = 0 if every else self._plan.gradients  # are in the optimizer already
        option = (
            f"batches of {size // 2}, gradient_accumulation_steps={2 * (every or 1)}"
        )
        return option, self._peak(half) + sums

    def _shorter(self):
        x, y, weight = self._batch
        texts = {role: _text_length(x[role]) for role in ("student", "teacher")}
        length, needed = texts["student"], 2 * y.shape[-1]
        if length is None or min(v for v in texts.values() if v) < 2 * needed:
            return None
        roles = {k: _resized(x[k], 1, v, v // 2) for k, v in texts.items() if v}
        return f"sequence_length={length // 2}", self._peak(({**x, **roles}, y, weight))

    def _cached(self):
        x, y, weight = self._batch
        part, *others = self._distiller.teacher_parts
        length = _text_length(x["teacher"])
        stored = all(e.features in _CACHED for e in part.energies.values())
        if others or length is None or not stored or not part.view.head.has_matrix:
            return None
        # Of two tokens it takes next to nothing.
        short = {**x, "teacher": _resized(x["teacher"], 1, length, 2)}
        head = part.view.head.matrix().kernel
        kept = bytes_of_arrays([(head.shape, part.view.model.variable_dtype)])
        saved = self._plan.weights["teacher"] - kept
        return "cache_teacher(...)", self._peak((short, y, weight)) - saved

    def _fused(self):
        distiller, (x, _, _) = self._distiller, self._batch
        if distiller.fused is not False:
            return None
        with _with_attribute(distiller, "fused", "auto"):
            return ('fused="auto"', self._peak()) if distiller.fuses(x) else None

    def _lora(self):
        backbone = getattr(self._distiller.student, "backbone", None)
        if not hasattr(backbone, "default_lora_layer_names"):
            return None
        names = backbone.default_lora_layer_names()
        named = [layer for layer in sublayers(backbone) if layer.name in names]
        chosen = [layer for layer in named if hasattr(layer, "enable_lora")]
        if not chosen or any(layer.lora_enabled for layer in chosen):
            return None
        trained = self._distiller.trainable_variables
        of_backbone = {id(v) for v in backbone.variables}
        # With the gradients of the weights in place of those of their few factors.
        factored = {id(v) for layer in chosen for v in layer.trainable_variables}
        left = [v for v in trained if id(v) in factored or id(v) not in of_backbone]
        share = 1 - _bytes(left) / self._plan.gradients
        saved = int(share * self._plan.optimizer)
        return "student.backbone.enable_lora(rank)", self._peak(trained=left) - saved

    def _smaller_teacher(self):
        models = [part.view.model for part in self._distiller.teacher_parts]
        large = [v for m in models for v in m.variables if len(v.shape) > 1]
        saved = _bytes(v for v in large if v.dtype == "float32") // 2
        if saved:
            return 'a teacher of dtype="bfloat16"', self._plan.peak - saved
        if any(not keras.backend.is_float_dtype(v.dtype) for v in large):
            return None
        saved = _bytes(large) // 2
        return 'teacher.backbone.quantize("int8")', self._plan.peak - saved


def _text_length(inputs):
    """T where a model's inputs are tokens and masks alone, all (B, T); else `None`."""
    if not isinstance(inputs, dict) or "token_ids" not in inputs:
        return None
    shapes = {tuple(x.shape) for x in keras.tree.flatten(inputs)}
    return inputs["token_ids"].shape[1] if len(shapes) == 1 else None


def _resized(nest, axis, size, new):
    """The shapes of a nest, with another size where an axis has a given one."""

    def resize(x):
        if x is None or x.shape[axis] != size:
            return x
        shape = (*x.shape[:axis], new, *x.shape[axis + 1 :])
        return keras.KerasTensor(shape, dtype=x.dtype)

    return keras.tree.map_structure(resize, nest)


@contextlib.contextmanager
def _with_attribute(holder, name, value):
    """A context in which an object has another attribute."""
    before = getattr(holder, name)
    setattr(holder, name, value)
    try:
        yield
    finally:
        setattr(holder, name, before)
