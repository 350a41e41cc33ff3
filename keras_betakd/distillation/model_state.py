"""What a model's own config leaves out: LoRA, quantised layers, frozen layers.

A model that is built again from its config has none of what was done to its layers
afterwards. `described` says what was done, by the position of each layer in the order
of `sublayers`; `apply_description` does it again.
"""

import functools

import keras

from keras_betakd.distillation.lora_state import (
    has_lora,
    load_once,
    load_unmerged_once,
)
from keras_betakd.models.layers import own_variables, sublayers

# GPTQ and AWQ need data; Keras builds their layers from the config alone.
_QUANTISED_AT_ONCE = ("int8", "int4", "float8")


def described(model):
    """What was done to the layers of a model: a dict that JSON can hold."""
    layers = _with_variables(model)
    lora, modes, frozen, variables = {}, {}, [], {}
    for i, layer in enumerate(layers):
        if has_lora(layer):
            lora[str(i)] = [layer.lora_rank, layer.lora_alpha]
        if getattr(layer, "quantization_mode", None) in _QUANTISED_AT_ONCE:
            # Keras builds another one from the config, int4 layers with one at all.
            quantizer = getattr(layer, "inputs_quantizer", None)
            quantizer = keras.saving.serialize_keras_object(quantizer)
            modes[str(i)] = [layer.quantization_mode, quantizer]
        if not layer.trainable:
            frozen.append(i)
        still = [name for name, v in own_variables(layer).items() if not v.trainable]
        if still:
            variables[str(i)] = still
    return {
        "classes": [type(layer).__name__ for layer in layers],
        "lora": lora,
        "quantized": modes,
        "frozen_layers": frozen,
        "frozen_variables": variables,
    }


def apply_description(model, description):
    """Does to a model, built from its config, what was done to the one described.

    Args:
        model: the model.
        description: what `described` returned.

    Raises:
        ValueError: the model has other layers than the one described.
    """
    layers = _with_variables(model)
    classes = [type(layer).__name__ for layer in layers]
    if classes != description["classes"]:
        raise ValueError(
            f"The archive describes a {type(model).__name__} of "
            f"{len(description['classes'])} layers; its config builds one of "
            f"{len(classes)}, or of other ones. Load it with the versions of Keras and "
            "keras-hub that it was saved with."
        )
    for i, (mode, quantizer) in description["quantized"].items():
        layer = layers[int(i)]
        if layer.quantization_mode is None:
            config = getattr(layer, "quantization_config", None)
            layer.quantize(mode, config=config)
        if hasattr(layer, "inputs_quantizer"):
            layer.inputs_quantizer = quantizer
    for i, (rank, alpha) in description["lora"].items():
        if not has_lora(layers[int(i)]):
            layers[int(i)].enable_lora(rank, lora_alpha=alpha)
    _freeze(layers, description)
    load_unmerged_once(model)


def _with_variables(model):
    # Not tokenizers, say, which may or may not be listed among a model's layers.
    return [layer for layer in sublayers(model) if layer.variables]


def _freeze(layers, description):
    frozen = set(description["frozen_layers"])
    # Outer layers stand before those in them, to which they pass their flag on.
    for i, layer in enumerate(layers):
        if layer.trainable != (i not in frozen):
            layer.trainable = i not in frozen
    for i, layer in enumerate(layers):
        still = description["frozen_variables"].get(str(i), ())
        for name, variable in own_variables(layer).items():
            if variable.trainable != (name not in still):
                variable.trainable = name not in still


def shared_layers(teacher, student):
    """The places of the layers that two models have in common, as pairs."""
    places = {id(layer): i for i, layer in enumerate(_with_variables(student))}
    layers = enumerate(_with_variables(teacher))
    return [[i, places[id(layer)]] for i, layer in layers if id(layer) in places]


def copy_shared_layers(teacher, student, pairs):
    """Lets the teacher's layers of `shared_layers` take the student's values.

    An archive has such a layer once, with the student, which Keras loads first; built
    from their configs, the two models have one each.
    """
    ours, theirs = _with_variables(student), _with_variables(teacher)
    for i, j in pairs:
        if theirs[i] is not ours[j]:
            load_once(theirs[i], functools.partial(_copy, ours[j], theirs[i]))


def _copy(source, layer, store):
    values = own_variables(source)
    for name, variable in own_variables(layer).items():
        # JAX does not train where two variables have one array.
        variable.assign(keras.ops.copy(values[name]))
