"""Reads the settings of a checkpoint's JSON files, each checked before it is used."""

import math
import pathlib

from keras_betakd.files import read_json

_ADVICE = "Download the file again, from where the checkpoint was published."
# A value in an error message is not longer than this.
_SHOWN = 80


def read_object(path):
    """The JSON object in a file, as a dict.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, or no object; the message names the file.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no '{path}'. Give a folder that holds a checkpoint as it was "
            "published."
        )
    try:
        values = read_json(path)
    except ValueError as error:
        raise ValueError(
            f"'{path}' is damaged: it should be a json file. Received: {error}. "
            + _ADVICE
        ) from error
    if not isinstance(values, dict):
        raise ValueError(
            f"'{path}' is damaged: it should hold a json object. Received: "
            f"{shown(values)}. {_ADVICE}"
        )
    return values


def shown(value):
    """A value as text for an error message, which a large one does not fill."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def is_whole(value):
    """Whether a value of JSON is a whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_finite(value):
    """Whether a value of JSON is a number, neither NaN nor infinite."""
    if is_whole(value):
        return abs(value) < 10**300  # beyond, it is no float
    return isinstance(value, float) and math.isfinite(value)


class Fields:
    """The settings of a JSON object, checked as they are read.

    Args:
        values: dict, the object.
        source: text that names the file (and the object in it) in error messages.
        architecture: text that names the models that are supported, in error messages.
        defaults: dict of values for what the object leaves out.
    """

    def __init__(self, values, source, architecture, defaults=None):
        self.values = {**(defaults or {}), **values}
        self.source = source
        self.architecture = architecture

    def __contains__(self, key):
        return key in self.values

    def get(self, key, default=None):
        """The value as it stands there; `None` and absence are the default."""
        value = self.values.get(key)
        return default if value is None else value

    def section(self, key, defaults=None):
        """The object under a key."""
        value = self.values[key]
        if not isinstance(value, dict):
            raise self.error(key, "a json object")
        return Fields(value, f"{self.source}, {key}", self.architecture, defaults)

    def size(self, key):
        """A whole number of at least 1; KeyError if there is none."""
        if not is_whole(self.values[key]) or self.values[key] < 1:
            raise self.error(key, "a whole number, 1 or more")
        return self.values[key]

    def number(self, key, default=None, below=math.inf):
        """A finite number over 0 and under `below`, as a float or an int."""
        value = self.get(key, default)
        if not is_finite(value) or not 0 < value < below:
            limit = "" if below == math.inf else f" and below {below}"
            raise self.error(key, f"a finite number above 0{limit}")
        return value

    def text(self, key, default=None):
        """A string, not empty; KeyError if there is neither one nor a default."""
        value = self.values[key] if default is None else self.get(key, default)
        if not isinstance(value, str) or not value:
            raise self.error(key, "a string")
        return value

    def expect(self, key, *allowed):
        """Raises unless the value, where there is one, is one of those allowed."""
        if key not in self.values:
            return
        value = self.values[key]
        # In Python, 0 equals False; in a file they are two things.
        if not any(type(value) is type(a) and value == a for a in allowed):
            raise ValueError(
                f"A checkpoint with {key}={shown(value)} ({self.source}) is of another "
                f"architecture than {self.architecture}, or damaged. Expected: "
                + " or ".join(map(repr, allowed))
            )

    def error(self, key, expected):
        return ValueError(
            f"{self.source} has a wrong {key}. Expected: {expected}. Received: "
            f"{key}={shown(self.values.get(key))}. {_ADVICE}"
        )
