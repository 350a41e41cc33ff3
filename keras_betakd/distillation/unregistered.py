"""Warns of functions and classes that an archive names and that loading cannot find."""

import types
import warnings

import keras

from keras_betakd.energies import Energy


def warn_of_unregistered(distiller):
    """Warns, before an archive is written, of what it cannot be loaded without.

    Keras writes functions and classes by their registered names. Where there is none,
    or another function has it, loading fails or takes the other one. Of a lambda Keras
    itself warns.

    Args:
        distiller: the distiller.
    """
    found = {
        f"`{where}={thing.__name__}`": thing.__name__
        for where, thing in _named_things(distiller).items()
        if not _is_found(thing)
    }
    if found:
        objects = ", ".join(f"{name!r}: {name}" for name in sorted({*found.values()}))
        warnings.warn(
            "The archive names functions or classes that are not registered: "
            f"{', '.join(found)}. `keras.saving.load_model` will need "
            f"`custom_objects={{{objects}}}`. Or decorate each with "
            "`@keras.saving.register_keras_serializable()` and save again; a method "
            "needs a function of its own around it.",
            stacklevel=3,
        )


def _named_things(distiller):
    """Dict of the functions and classes of an archive by the arguments they are of."""
    templates = getattr(distiller.preprocessor, "prompt_templates", {})
    given = {"freeze": distiller.freeze}
    given |= {f"prompt_template[{role!r}]": x for role, x in templates.items()}
    found = {where: x for where, x in given.items() if _is_function(x)}
    for name, part in distiller.energies.items():
        found |= _named_by(part, f"energies[{name!r}]")
    for name, part in distiller.all_betas().items():
        found |= _named_by(part, f"betas[{name!r}]")
    return found


def _named_by(part, where):
    """The class of an energy or a beta, and the functions that it was given."""
    found = {where: type(part)}
    for name, value in vars(part).items():
        if isinstance(value, Energy):
            found |= _named_by(value, f"{where}.{name}")
        # What its class has, too, is a method that Keras has wrapped.
        elif _is_function(value) and name[0] != "_" and not hasattr(type(part), name):
            found[f"{where}.{name}"] = value
    return found


def _is_function(value):
    kinds = types.FunctionType, types.MethodType, types.BuiltinFunctionType
    return isinstance(value, kinds) and value.__name__ != "<lambda>"


def _is_found(thing):
    """Whether Keras finds it by the name that it writes."""
    name = keras.saving.get_registered_name(thing)
    if keras.saving.get_registered_object(name) is thing:
        return True
    if isinstance(thing, type):
        return False
    try:  # Keras' own functions are found by their names alone
        config = keras.saving.serialize_keras_object(thing)
        return keras.saving.deserialize_keras_object(config) is thing
    except (TypeError, ValueError):
        return False
