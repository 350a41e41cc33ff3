"""What a weights file says of the loss that it was trained by.

Two losses can have the same variables: those of a `SkewForwardKLEnergy` and of a
`CosineProbsEnergy`, say. A file that is loaded into a distiller with another one is
used, since that may be meant, but not without a word.
"""

import json
import warnings

import keras
import numpy as np


def settings_of(distiller):
    """The configs of all that the loss is made of, as the bytes of a JSON object."""
    parts = {
        **{f"energies['{k}']": _config(v) for k, v in distiller.energies.items()},
        **{f"betas['{k}']": _config(v) for k, v in distiller.betas.items()},
        "task_beta": distiller.task_beta and _config(distiller.task_beta),
        "reduction": distiller.reduction,
    }
    return np.frombuffer(json.dumps(_named(parts), default=repr).encode(), "uint8")


def warn_of_changes(distiller, saved):
    """Warns once of each part of the loss that a file's training had otherwise.

    Raises:
        ValueError: an energy stands at another place than in the file.
    """
    before = json.loads(np.asarray(saved).tobytes())
    now = json.loads(settings_of(distiller).tobytes())
    _expect_places(before, now)
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        name = changed[0]
        warnings.warn(
            "The weights were trained by another loss than they are loaded for: "
            f"{', '.join(changed)} differ. Training goes on with the present one. In "
            f"the file, {name} is {before.get(name)}; here it is {now[name]}.",
            stacklevel=2,
        )


def _expect_places(before, now):
    """Raises where energies would get each other's betas and projections.

    Keras finds the layers of a dict by their places.
    """
    ours, theirs = (
        [name for name in names if name.startswith("energies[")]
        for names in (now, before)
    )
    moved = {*ours} & {*theirs}
    if any(ours.index(name) != theirs.index(name) for name in moved):
        raise ValueError(
            "Its energies stand in another order, or among others, than those they are "
            "loaded for: each would get the beta of the one at its place. Give "
            "`energies` (and teachers) as they were. "
            f"In the file: {', '.join(theirs)}; here: {', '.join(ours)}"
        )


def _config(part):
    """The config of a part of the loss, or its class where that is all that is known.

    A callable that is no function (a `functools.partial`) has none. It can be no part
    of an archive, but a weights file needs none of it.
    """
    with warnings.catch_warnings():
        # Of a lambda Keras says how its archive is loaded, which is none here.
        warnings.filterwarnings("ignore", "The object being serialized includes a `lam")
        try:
            return keras.saving.serialize_keras_object(part)
        except TypeError:
            return type(part).__name__


def _named(config):
    """A config without what is no setting: modules, and names, which Keras counts."""
    if isinstance(config, dict) and config.get("class_name") == "__lambda__":
        return "lambda"  # its code, line numbers included, is not compared
    if isinstance(config, dict) and "class_name" in config:
        return {config["class_name"]: _named(config["config"])}
    if isinstance(config, dict):
        return {k: _named(v) for k, v in config.items() if k != "name"}
    if isinstance(config, (list, tuple)):
        return [_named(value) for value in config]
    return config
