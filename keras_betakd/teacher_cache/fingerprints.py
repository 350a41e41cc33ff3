"""Digests of what a cache depends on: teacher, preprocessor, vocabulary, records.

Equal digests mean equal content. Names, which Keras numbers itself, are left out.
"""

import hashlib
import json

import numpy as np
from keras import ops

from keras_betakd.preprocessing.image_inputs import images_by_record
from keras_betakd.preprocessing.records import as_text, as_turns, record_ids

_BYTES = 16


def of_weights(model):
    """Digest of a model's class and all its weights."""
    digest = _new(type(model).__name__)
    for weight in model.weights:
        _add_array(digest, ops.convert_to_numpy(weight.value))
    return digest.hexdigest()


def of_preprocessor(preprocessor):
    """Digest of a keras-hub preprocessor's settings and vocabulary."""
    config = _without_names(preprocessor.get_config())
    digest = _new(json.dumps(config, sort_keys=True, default=str))
    _add(digest, of_vocabulary(preprocessor.tokenizer).encode())
    return digest.hexdigest()


def of_vocabulary(tokenizer):
    """Digest of a tokenizer's tokens in the order of their ids."""
    digest = _new("")
    for token in tokenizer.get_vocabulary():
        _add(digest, as_text(token).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def of_records(records):
    """Digests of the records of a batch, each of its prompt, response and images.

    Args:
        records: dict of raw records.

    Returns:
        List of hexadecimal strings.
    """
    size = len(records["prompts"])
    names = record_ids(records, size)
    images = images_by_record(records.get("images"), size, names)
    return [
        _of_record(records["prompts"][i], records["responses"][i], images[i])
        for i in range(size)
    ]


def of_arrays(arrays, text):
    """Digest of a dict of arrays and a text."""
    digest = _new(text)
    for name in sorted(arrays):
        _add(digest, name.encode())
        _add_array(digest, arrays[name])
    return digest.hexdigest()


def _of_record(prompt, response, images):
    digest = _new("")
    for texts in (as_turns(prompt), as_turns(response)):
        _add(digest, json.dumps(texts).encode())
    for image in images:
        _add_array(digest, _as_uint8(image))
    return digest.hexdigest()


def _as_uint8(image):
    """The image as uint8 if it holds only such values: pipelines differ in dtype."""
    if image.dtype == np.uint8:
        return image
    with np.errstate(invalid="ignore"):
        converted = image.astype("uint8")
    return converted if (converted == image).all() else image


def _without_names(config):
    if isinstance(config, dict):
        return {k: _without_names(v) for k, v in config.items() if k != "name"}
    if isinstance(config, (list, tuple)):
        return [_without_names(v) for v in config]
    return config


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
