"""Digests of what a cache depends on: teacher, preprocessor, vocabulary, records.

Equal digests mean equal content. Names, which Keras numbers itself, are left out.
"""

import hashlib
import json

import numpy as np
from keras import ops

from keras_betakd.preprocessing.record_checks import checked_records

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
        token = token.decode() if isinstance(token, bytes) else str(token)
        _add(digest, token.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def of_records(records):
    """Digests of the records of a batch, each of its prompt, response and images.

    Args:
        records: dict of raw records.

    Returns:
        List of hexadecimal strings.
    """
    records = checked_records(records)
    keys = ("prompts", "responses", "images")
    return [
        _of_record(*record)
        for record in zip(*(records[key] for key in keys), strict=True)
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
    for texts in (prompt, response):
        _add(digest, json.dumps(texts).encode())
    for image in images:
        _add_array(digest, image)
    return digest.hexdigest()


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
