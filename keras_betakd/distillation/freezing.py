"""Which layers of the student train, and that the teacher's do not."""

import keras


def apply_freeze(view, freeze):
    """Freezes a part of the student; never unfreezes what its owner froze.

    Args:
        view: the student's `ModelView`.
        freeze: `"vision_tower"`, `"all_but_projector"`, `None`, or a callable that
            takes a layer and returns whether to freeze it.
    """
    if freeze is None:
        return
    if freeze == "all_but_projector":
        _freeze_all_but(view.model, view.projector())
        return
    if freeze == "vision_tower":
        layers = view.vision_tower()
    elif callable(freeze):
        layers = [layer for layer in all_layers(view.model) if freeze(layer)]
    else:
        raise ValueError(
            '`freeze` must be "vision_tower", "all_but_projector", `None`, or a '
            f"callable that takes a layer. Received: freeze={freeze}"
        )
    for layer in layers:
        freeze_layer(layer)


def _freeze_all_but(model, layers):
    if not layers:
        raise ValueError(
            '`freeze="all_but_projector"` needs a student with a projector between '
            f"images and language model. Received: {type(model).__name__}"
        )
    kept = {id(v) for layer in layers for v in layer.variables}
    for variable in model.variables:
        if id(variable) not in kept:
            variable.trainable = False


def freeze_layer(layer):
    """Freezes a layer and all that is in it.

    Variable by variable too: a layer that was made with `trainable=False` (from a
    config) does not hand that on to its sublayers, and on TensorFlow setting it again
    to what it is does nothing.
    """
    layer.trainable = False
    for variable in layer.variables:
        variable.trainable = False


def all_layers(model):
    """The layers of a model, and those inside its models."""
    for layer in model.layers:
        yield layer
        if isinstance(layer, keras.Model):
            yield from all_layers(layer)


def computes_in_float16(model):
    """Whether a layer computes in float16, whose gradients need loss scaling."""
    return any(layer.compute_dtype == "float16" for layer in all_layers(model))
