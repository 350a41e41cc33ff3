"""Which parts of the student train, and that the teacher's do not.

What is frozen here is marked, and given back before the next distiller of the same
model freezes what it says: in stages, each stage trains what its own `freeze` leaves.
What the model's owner froze (`trainable = False`, LoRA) has no mark and stays frozen.

Variables are frozen, and not the flags of their layers: a layer whose flag is false
was frozen by its owner, be it after these variables. Two kinds of flags are set all the
same: the teacher's own, and those of layers with a state that training changes without
gradient (batch normalisation), which they keep still only for their own flag.
"""

import contextlib
import math
import warnings

import keras

from keras_betakd.models.layers import children

_MARK = "frozen_by_keras_betakd"
_SHOWN = 5


def apply_freeze(view, freeze):
    """Freezes a part of the student; never unfreezes what its owner froze.

    Args:
        view: the student's `ModelView`.
        freeze: `"vision_tower"`, `"all_but_projector"`, `None`, or a callable that
            takes a layer and returns whether to freeze it.
    """
    chosen = _chosen(view, freeze)
    give_back(view.model)
    if not chosen:
        return
    for layer in layers_within(view.model):
        state = [w for w in _own_weights(layer) if not w.trainable]
        still = layer.trainable and not getattr(layer, "lora_enabled", False)
        if still and any(id(w) in chosen for w in state):
            _mark(layer)
            _set_flag(layer, False)
    _freeze_variables(v for v in view.model.variables if id(v) in chosen)


def freeze_teacher(model):
    """Freezes a model and all that is in it."""
    if model.trainable:
        _mark(model)
        _set_flag(model, False)
    _freeze_variables(model.variables)


def give_back(model):
    """Lets those parts of a model train again that this module froze."""
    for layer in layers_within(model):
        if hasattr(layer, _MARK) and not layer.trainable:
            _set_flag(layer, True)
        _unmark(layer)
    ours = _frozen_here(model)
    for variable in model.variables:
        if id(variable) in ours:
            variable.trainable = True
        _unmark(variable)


@contextlib.contextmanager
def given_back(model):
    """A context in which a model is frozen as its owner froze it, for its config."""
    layers, variables = layers_within(model), model.variables
    flags = [(x, x.trainable, hasattr(x, _MARK)) for x in (*layers, *variables)]
    give_back(model)
    try:
        yield
    finally:
        for x, trainable, marked in flags:
            x.trainable = trainable
            if marked:
                _mark(x)


def expect_apart(student, teacher, freeze):
    """Raises where training the student would change the teacher.

    They may have a vision tower in common, if it is frozen in the student too, and
    what has no weights or only those of `keras.layers.Normalization`.

    Args:
        student, teacher: the two `ModelView`s.
        freeze: as for `apply_freeze`.
    """
    if student.model is teacher.model:
        raise ValueError(
            "Teacher and student are the same object, which would be frozen as the "
            "teacher and learn nothing. To train a model to its own earlier outputs, "
            "load it twice. Received: teacher=student="
            f"{type(student.model).__name__} named {student.model.name!r}"
        )
    theirs = {id(w) for w in teacher.model.weights} - _frozen_tower(student, freeze)
    for layer in layers_within(teacher.model):
        if isinstance(layer, keras.layers.Normalization):
            theirs -= _ids([layer])
    shared = _shared_parts(student.model, teacher.model, theirs)
    if shared:
        more = f" and {len(shared) - _SHOWN} more" if len(shared) > _SHOWN else ""
        raise ValueError(
            "Teacher and student share layers, which cannot be frozen in the teacher "
            "and train in the student. Give the student layers of its own "
            "(`keras.models.clone_model`, then `set_weights`); only a vision tower "
            "that is frozen in the student may be shared. Received, in both: "
            f"{', '.join(shared[:_SHOWN])}{more}"
        )


def expect_trainable(student, freeze):
    """Raises if nothing in a built student trains."""
    if not student.built or student.trainable_variables:
        return
    ours = len(_frozen_here(student))
    raise ValueError(
        "Nothing in the student trains, so `fit` would change betas at most. Of its "
        f"{len(student.variables)} variables, this distiller froze {ours} (as "
        f"`freeze={freeze!r}` says) and their owner the others: set "
        "`student.trainable = True`, or that of the layers that are to train, before "
        "the distiller is made; or choose another `freeze`. `evaluate` works as it is. "
        f"Received: student={type(student).__name__} named {student.name!r}"
    )


def warn_of_quantized(student):
    """Warns where layers hold integers, which do not train, and no LoRA factors."""
    layers = list(layers_within(student))
    quantized = [x for x in layers if getattr(x, "quantization_mode", None)]
    if not quantized or any(getattr(x, "lora_enabled", False) for x in layers):
        return
    total, ours = (
        sum(math.prod(v.shape) for v in variables)
        for variables in (student.variables, student.trainable_variables)
    )
    warnings.warn(
        f"{len(quantized)} layers of the student are quantised, and their kernels do "
        f"not train: of its {total:,} numbers {ours:,} do. Distil the student first "
        "and quantise what you ship, or call `student.backbone.enable_lora(rank)` "
        "before the distiller is made.",
        stacklevel=3,
    )


def _chosen(view, freeze):
    """The ids of the student's variables that `freeze` says to freeze."""
    if freeze is None:
        return set()
    if freeze == "all_but_projector":
        kept = _ids(view.projector())
        if not kept:
            raise ValueError(
                '`freeze="all_but_projector"` needs a student with a projector between '
                f"images and language model. Received: {type(view.model).__name__}"
            )
        return _ids([view.model]) - kept
    if freeze == "vision_tower":
        return _ids(view.vision_tower())
    if callable(freeze):
        return _ids([layer for layer in all_layers(view.model) if freeze(layer)])
    raise ValueError(
        '`freeze` must be "vision_tower", "all_but_projector", `None`, or a '
        f"callable that takes a layer. Received: freeze={freeze}"
    )


def _ids(layers):
    return {id(v) for layer in layers for v in layer.variables}


def _frozen_tower(view, freeze):
    """The ids of the vision tower's variables, if none of them will train."""
    tower = [v for layer in view.vision_tower() for v in layer.variables]
    chosen = _chosen(view, freeze)
    ours = {i for layer in view.vision_tower() for i in _frozen_here(layer)}
    trains = {id(v) for v in tower if v.trainable} | ours
    frozen = trains <= chosen
    return {id(v) for v in tower} if frozen else set()


def _shared_parts(model, other, weights):
    """The paths of the outermost parts of `model` that are in `other` too.

    Args:
        model, other: two models.
        weights: the ids of those of the other's weights that must not be shared.
    """
    theirs = {id(layer) for layer in layers_within(other)}
    found, seen = [], set()

    def visit(layer):
        if id(layer) in seen or not weights & {id(w) for w in layer.weights}:
            return
        seen.add(id(layer))
        if id(layer) in theirs:
            found.append(layer.path or layer.name)
            return
        for child in children(layer):
            visit(child)
        found.extend(w.path for w in _own_weights(layer) if id(w) in weights)

    visit(model)
    return list(dict.fromkeys(found))


def _freeze_variables(variables):
    for variable in variables:
        if variable.trainable:
            _mark(variable)
            variable.trainable = False


def _frozen_here(layer):
    """The ids of the variables that are frozen by this module and not their owner."""
    marked = {id(v) for v in layer.variables if hasattr(v, _MARK)}
    return marked - {id(w) for x in layers_within(layer) for w in _held_by_owner(x)}


def _held_by_owner(layer):
    """The layer's own variables that stay frozen: by its flag, or as LoRA's base."""
    own = _own_weights(layer)
    if not layer.trainable and not hasattr(layer, _MARK):
        return own
    if getattr(layer, "lora_enabled", False):
        return [w for w in own if hasattr(layer, f"lora_{w.name}_a")]
    return []


def _set_flag(layer, trainable):
    """Sets `trainable` of a layer alone, which would set that of all in it."""
    _, *within = layers_within(layer)
    flags = [(x, x.trainable) for x in (*within, *layer.variables)]
    layer.trainable = trainable
    for x, flag in flags:
        x.trainable = flag


def _mark(x):
    setattr(x, _MARK, True)


def _unmark(x):
    if hasattr(x, _MARK):
        delattr(x, _MARK)


def layers_within(layer):
    """A layer and all layers in it, each behind all that contain it."""
    order, seen = [], set()

    def visit(x):
        seen.add(id(x))
        for child in children(x):
            if id(child) not in seen:
                visit(child)
        order.append(x)

    visit(layer)
    return order[::-1]


def _own_weights(layer):
    """The weights of a layer that are in none of its sublayers."""
    inner = {id(w) for child in children(layer) for w in child.weights}
    return [w for w in layer.weights if id(w) not in inner]


def all_layers(model):
    """The layers of a model, and those inside its models."""
    for layer in model.layers:
        yield layer
        if isinstance(layer, keras.Model):
            yield from all_layers(layer)


def computes_in_float16(model):
    """Whether a layer computes in float16, whose gradients need loss scaling."""
    return any(layer.compute_dtype == "float16" for layer in all_layers(model))
