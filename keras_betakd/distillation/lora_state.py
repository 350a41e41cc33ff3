"""Keeps LoRA factors apart from their kernels in the files that Keras writes.

Keras saves a LoRA layer as kernel + a b, and zeroes a and b when it loads that: a model
that was to go on training has a gradient of zero in every factor from then on. Within
`unmerged`, such a layer saves and loads each variable as it is.
"""

import contextlib
import functools

import keras
import numpy as np

from keras_betakd.models.layers import own_variables, sublayers

# Stands beside the variables in the group of a LoRA layer, and of no other.
ALPHA = "lora_alpha"


def has_lora(layer):
    """Whether LoRA is enabled in a layer."""
    return bool(getattr(layer, "lora_enabled", False))


@contextlib.contextmanager
def unmerged(*models, lacking=None):
    """Within, layers with LoRA are saved and loaded with their factors as they are.

    A file without factors can be loaded too: its kernels become the base, b is zero,
    and a stays as it is.

    Args:
        *models: built models.
        lacking: list to which each layer without LoRA is added, with rank and alpha,
            for which the file has factors; its base is loaded. `None` makes that an
            error.
    """
    layers = [x for model in models for x in sublayers(model)]
    layers = [x for x in layers if hasattr(x, "enable_lora")]
    for layer in layers:
        if has_lora(layer):
            _set(layer, "save_own_variables", functools.partial(_save, layer))
        _set(layer, "load_own_variables", functools.partial(_load, layer, lacking))
    try:
        yield
    finally:
        for layer in layers:
            vars(layer).pop("save_own_variables", None)
            vars(layer).pop("load_own_variables", None)


def load_unmerged_once(model):
    """Lets the layers with LoRA load as within `unmerged`, the next time they load."""
    for layer in filter(has_lora, sublayers(model)):
        load_once(layer, functools.partial(_load, layer, None))


def load_once(layer, load):
    """Lets `load(store)` load a layer, the next time that it is loaded."""
    _set(layer, "load_own_variables", functools.partial(_load_once, layer, load))


def _set(layer, name, function):
    # Past Keras' tracking, which has nothing to do with a function.
    object.__setattr__(layer, name, function)


def _load_once(layer, load, store):
    vars(layer).pop("load_own_variables", None)
    load(store)


def _save(layer, store):
    for name, variable in own_variables(layer).items():
        store[name] = variable
    store[ALPHA] = np.float64(layer.lora_alpha)


def _load(layer, lacking, store):
    if ALPHA not in store.keys():
        _load_merged(layer, store)
        return
    saved = {name: store[name] for name in store.keys()}
    alpha = float(saved.pop(ALPHA))
    (rank,) = {v.shape[-1] for k, v in saved.items() if _is_factor(k, "a")}
    if has_lora(layer) or lacking is None:
        _expect_same(layer, rank, alpha)
    else:
        lacking.append((layer, rank, alpha))
        saved = {k: v for k, v in saved.items() if not k.startswith("lora_")}
    own = own_variables(layer)
    if own.keys() != saved.keys():
        raise ValueError(
            f"Layer '{layer.path}' has the variables {sorted(own)}, the file has "
            f"{sorted(saved)}. Quantise the model as it was when the file was written."
        )
    for name, variable in own.items():
        variable.assign(saved[name])


def _expect_same(layer, rank, alpha):
    if not has_lora(layer):
        raise ValueError(
            f"The file holds LoRA factors of rank {rank} for the layer '{layer.path}', "
            f"which has none. Call `enable_lora({rank})` first, for the same layers as "
            "when the file was written."
        )
    if (layer.lora_rank, float(layer.lora_alpha)) != (rank, alpha):
        raise ValueError(
            f"The file holds LoRA factors of rank {rank} and alpha {alpha:g} for the "
            f"layer '{layer.path}', which has rank {layer.lora_rank} and alpha "
            f"{layer.lora_alpha:g}. Call `enable_lora({rank})` on a new model."
        )


def _load_merged(layer, store):
    """Loads what a layer without LoRA, or a version before this one, has saved."""
    kept = {
        name: keras.ops.convert_to_numpy(variable)
        for name, variable in own_variables(layer).items()
        if has_lora(layer) and _is_factor(name, "a")
    }
    type(layer).load_own_variables(layer, store)
    own = own_variables(layer)
    for name, value in kept.items():
        own[name].assign(value)


def _is_factor(name, which):
    return name.startswith("lora_") and name.endswith(f"_{which}")
