"""The answer to train, out of what public question files have for answers."""

import collections
import math
import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_betakd.data.batches import record_error

_TEXT_KEYS = ("answer", "text")


def answer_text(record_id: str, answer: Any) -> str:
    """Returns the answer of a row as a text.

    Args:
        record_id: The record's id, for errors.
        answer: A text; a number, whose text it is; a list of answers, of which the most
            frequent one is used, the first of equally frequent ones; or dicts that have
            the answer under "answer" or "text", or lists of answers.

    Raises:
        ValueError: It is none of these (`None`, NaN), or an empty list.

    Example:

    >>> answer_text("7", [{"answer": "two"}, {"answer": 2}, {"answer": "2"}])
    '2'
    """
    answer = _unwrapped(answer)
    if isinstance(answer, (list, tuple)):
        texts = [_text(_unwrapped(one)) for one in answer]
        if not texts or None in texts:
            message = "a list of answers must hold strings or numbers, at least one."
            raise record_error(record_id, message, reprlib.repr(answer))
        return collections.Counter(texts).most_common(1)[0][0]
    text = _text(answer)
    if text is None:
        message = "an answer must be a string or a number."
        raise record_error(record_id, message, reprlib.repr(answer))
    return text


def _unwrapped(answer):
    if isinstance(answer, np.ndarray):
        return answer.tolist()
    if isinstance(answer, Mapping):
        found = [answer[key] for key in _TEXT_KEYS if answer.get(key) is not None]
        return _unwrapped(found[0]) if len(found) == 1 else None
    return answer


def _text(answer):
    """The text of one answer; `None` if there is none."""
    if isinstance(answer, np.generic):
        answer = answer.item()
    if isinstance(answer, str):
        return answer
    if isinstance(answer, int) and not isinstance(answer, bool):
        return str(answer)
    if not isinstance(answer, float) or not math.isfinite(answer):
        return None
    return str(int(answer) if answer.is_integer() else answer)
