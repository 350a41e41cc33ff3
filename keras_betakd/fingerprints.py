"""Digests of what numbers depend on: models, preprocessors, records, questions, files.

Equal digests mean equal content. What goes on after a stop (a teacher cache, the
answers of an evaluation) compares them, so that one result is never made of two models
or of two data sets. Names, which Keras numbers itself, are left out, and so is what
inference does not depend on: initializers, seeds, what is trainable, how a model is
compiled.

A model is its weights, and of each of its layers the class, the precision (dtype
policy), the configuration where it has one, and all public attributes with plain values
(numbers, texts, arrays, and lists or dicts of them). What a layer of one's own keeps in
a private attribute alone, or in the code of a function, is not seen: let its
`get_config` return it.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import sys

import keras
import numpy as np
from keras import ops

from keras_betakd.files import digest_of_file
from keras_betakd.models.layers import sublayers
from keras_betakd.preprocessing.byte_pairs import rule_of
from keras_betakd.preprocessing.image_formats import format_of
from keras_betakd.preprocessing.prompt_templates import (
    resolved_template,
    template_label,
)
from keras_betakd.preprocessing.record_checks import checked_records
from keras_betakd.version import __version__

_BYTES = 16
_LEFT_OUT = frozenset(
    "name trainable seed build_config batch_shape batch_input_shape config_file "
    "input_layers output_layers output_names "  # names that Keras numbers
    "stop_training stop_evaluating stop_predicting".split()
)
_LEFT_OUT_ENDINGS = ("_initializer", "_regularizer", "_constraint")


def of_model(model) -> str:
    """Digest of all that a model's outputs depend on: architecture and weights.

    Args:
        model: A Keras model.

    Example:

    ```python
    of_model(load_model("my_student"))
    ```
    """
    return of_value([of_architecture(model), of_weights(model)])


def of_weights(model) -> str:
    """Digest of a model's class and all its weights."""
    digest = _new(type(model).__name__)
    for weight in model.weights:
        _add_array(digest, ops.convert_to_numpy(weight.value))
    return digest.hexdigest()


def of_architecture(model) -> str:
    """Digest of a model's layers: their classes, constants and precisions."""
    layers = [model, *sublayers(model)]
    preprocessor = getattr(model, "preprocessor", None)
    if isinstance(preprocessor, keras.Layer):
        # It gets layers when it is used first, and has a digest of its own.
        apart = {id(layer) for layer in (preprocessor, *sublayers(preprocessor))}
        layers = [layer for layer in layers if id(layer) not in apart]
    return of_value([_described(layer) for layer in layers])


def of_preprocessor(preprocessor) -> str:
    """Digest of a keras-hub preprocessor: its settings, converters and tokenizer."""
    parts = [preprocessor]
    for name in ("image_converter", "audio_converter", "video_converter"):
        parts += [p for p in [getattr(preprocessor, name, None)] if p is not None]
    tokenizer = preprocessor.tokenizer
    # What its files hold beside the tokens: the scores, the order of merges.
    files = {name: getattr(tokenizer, name, None) for name in ("proto", "merges")}
    known = [_class_of(tokenizer), _config_of(tokenizer), _plain(files)]
    rule = rule_of(tokenizer)
    known += [] if rule is None else [dataclasses.asdict(rule)]
    return of_value([*map(_described, parts), known, of_vocabulary(tokenizer)])


def of_vocabulary(tokenizer) -> str:
    """Digest of a tokenizer's tokens in the order of their ids."""
    digest = _new("")
    for token in tokenizer.get_vocabulary():
        token = token.decode() if isinstance(token, bytes) else str(token)
        _add(digest, token.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def of_records(records) -> list[str]:
    """Digests of the records of a batch, each of its texts and images.

    Args:
        records: Dict of raw records.

    Returns:
        List of hexadecimal strings.
    """
    records = checked_records(records)
    keys, nothing = ("prompts", "responses", "images"), [None] * len(records["prompts"])
    columns = [records[key] for key in keys]
    columns += [records.get(key) or nothing for key in ("system", "response_tokens")]
    return [_of_record(*record) for record in zip(*columns, strict=True)]


def of_arrays(arrays, text) -> str:
    """Digest of a dict of arrays and a text."""
    digest = _new(text)
    for name in sorted(arrays):
        _add(digest, name.encode())
        _add_array(digest, arrays[name])
    return digest.hexdigest()


def of_value(value) -> str:
    """Digest of a value of JSON.

    Example:

    >>> of_value({"a": 1, "b": 2}) == of_value({"b": 2, "a": 1})
    True
    """
    return _new(json.dumps(value, sort_keys=True)).hexdigest()


def of_folder(folder: str | os.PathLike) -> dict[str, str]:
    """Digests of all files of a folder, by their names in it.

    The files are read whole: neither their sizes nor their dates say that two of them
    are equal. Hidden files and folders are left out.

    Args:
        folder: The folder, for example of a preset.

    Returns:
        Dict of each file's name, with `/` between its parts, to its SHA-256.

    Example:

    ```python
    of_folder("my_student")["model.weights.h5"]
    ```
    """
    folder, found, seen = pathlib.Path(folder), {}, set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        is_loop = real in seen  # a link to a folder above it
        seen.add(real)
        folders[:] = [] if is_loop else sorted(f for f in folders if f[0] != ".")
        for name in sorted(name for name in names if name[0] != "." and not is_loop):
            path = pathlib.Path(parent, name)
            if path.is_file():
                found[path.relative_to(folder).as_posix()] = digest_of_file(path)
    return found


def of_image_source(source) -> str | None:
    """SHA-256 of an image file, given by its path or its bytes; `None` for no image.

    Args:
        source: A path, the bytes of a file, or `None`.
    """
    if source is None:
        return None
    if isinstance(source, (bytes, bytearray, memoryview)):
        return hashlib.sha256(source).hexdigest()
    return digest_of_file(source)


def versions() -> dict[str, str]:
    """The versions of the packages that computed numbers depend on.

    Returns:
        Dict of the names of this package, Keras, keras-hub and Keras' backend to their
        versions. That of the backend is without its build ("2.9.0+cpu").

    Example:

    >>> sorted(versions())[:2]
    ['backend', 'keras']
    """
    backend = keras.config.backend()
    version = str(sys.modules[backend].__version__).split("+")[0]
    return {
        "backend": f"{backend} {version}",
        "keras": keras.__version__,
        "keras_betakd": __version__,
        "keras_hub": importlib.metadata.version("keras-hub"),
    }


def maker_of(model, prompt_template="auto") -> dict[str, str]:
    """What answers: the model's digest, its preprocessor's, template and versions.

    Args:
        model: A keras-hub model with its preprocessor.
        prompt_template: As for `generate_answers`.

    Returns:
        Dict of values of JSON. Without template, it names none.
    """
    template = resolved_template(prompt_template, format_of(model.preprocessor))
    label = template_label(template)
    return {
        **({} if label is None else {"prompt_template": label}),
        **versions(),
        "model": of_model(model),
        "preprocessor": of_preprocessor(model.preprocessor),
    }


def _described(layer):
    """All of a layer but its weights and those of its parts, as a value of JSON."""
    attributes = {
        name: value
        for name, value in vars(layer).items()
        if not name.startswith("_") and name not in _bookkeeping()
    }
    return [
        _class_of(layer),
        _policy_of(layer.dtype_policy),
        _config_of(layer),
        _plain(attributes),
    ]


@functools.cache
def _bookkeeping():
    """Attributes that every layer or model has, which Keras uses for itself."""
    return frozenset(vars(keras.layers.Layer())) | frozenset(vars(keras.Model()))


def _class_of(value):
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _policy_of(policy):
    if isinstance(policy, keras.dtype_policies.DTypePolicyMap):
        # Its other policies are those of the layers themselves.
        return [_class_of(policy), _policy_of(policy.default_policy)]
    return [_class_of(policy), policy.get_config()]


def _config_of(layer):
    """A layer's configuration; `None` where it has none, as many inside keras-hub."""
    try:
        config = layer.get_config()
    except (AttributeError, NotImplementedError):
        return None
    if not isinstance(config, dict):
        return None
    # Parts have descriptions of their own; a precision is described by its policy.
    parts = ("dtype", "layers", "preprocessor", "tokenizer", "image_converter")
    return _plain({k: v for k, v in config.items() if k not in parts})


_NOTHING = object()


def _plain(value):
    """A value as one of JSON, without what is no plain value; `_NOTHING` for that."""
    if isinstance(value, float) and value.is_integer():
        return int(value)  # 10000.0 of a file may be 10000 in code
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (bytes, np.ndarray, np.generic)):
        return [type(value).__name__, of_arrays({"value": _as_array(value)}, "")]
    if isinstance(value, dict):
        return _plain_dict(value)
    if isinstance(value, (list, tuple)):
        found = [_plain(v) for v in value]
        return [None if v is _NOTHING else v for v in found]
    return _NOTHING


def _plain_dict(value):
    if "DTypePolicy" in str(value.get("class_name")):
        # Its name is its content; the names in a map are those of numbered layers.
        is_map = value["class_name"] == "DTypePolicyMap"
        return None if is_map else json.loads(json.dumps(value, default=str))
    items = ((str(key), _plain(v)) for key, v in value.items())
    return {
        key: v
        for key, v in items
        if v is not _NOTHING
        and key not in _LEFT_OUT
        and not key.endswith(_LEFT_OUT_ENDINGS)
    }


def _as_array(value):
    if isinstance(value, bytes):
        return np.frombuffer(value, "uint8")
    return np.asarray(value)


def _of_record(prompt, response, images, system, tokens):
    digest = _new("")
    # A record without these has the digest that it had before there were any.
    more = [[value] for value in (system, tokens) if value is not None]
    for values in (prompt, response, *more):
        _add(digest, json.dumps(values).encode())
    for image in images:
        _add_array(digest, image)
    return digest.hexdigest()


def _new(text):
    digest = hashlib.blake2b(digest_size=_BYTES)
    _add(digest, text.encode())
    return digest


def _add(digest, data):
    # With its length, so that two texts differ from their concatenation.
    digest.update(len(data).to_bytes(8, "little"))
    digest.update(data)


def _add_array(digest, array):
    array = np.ascontiguousarray(array)
    _add(digest, f"{array.dtype} {array.shape}".encode())
    digest.update(array.reshape(-1).view(np.uint8).data)
