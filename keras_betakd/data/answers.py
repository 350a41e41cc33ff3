"""The answer to train, out of what public question files have for answers."""

import collections
import math
import re
import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_betakd.data.batches import record_error
from keras_betakd.data.narrow_floats import fewest_digits

_TEXT_KEYS = ("answer", "text")
_LIST = re.compile(r"\s*\[\s*(['\"]).*\1\s*\]\s*", re.DOTALL)


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


def expect_no_list_as_text(record_id: str, answer: Any) -> None:
    """Raises a `ValueError` for a list that was written into a cell of a CSV file.

    Example:

    >>> expect_no_list_as_text("7", "[0.5, 0.7]")
    """
    if isinstance(answer, str) and _LIST.fullmatch(answer):
        raise record_error(
            record_id,
            "a list of answers is a text in a CSV file, and would be trained with its "
            "brackets. Write one answer, or a JSON file, where it stays a list (of "
            "pandas, by `frame.to_json(path, orient='records', lines=True)`).",
            reprlib.repr(answer),
        )


def _unwrapped(answer):
    if isinstance(answer, np.ndarray):
        return list(answer) if answer.ndim else answer[()]
    if isinstance(answer, Mapping):
        found = [answer[key] for key in _TEXT_KEYS if answer.get(key) is not None]
        return _unwrapped(found[0]) if len(found) == 1 else None
    return answer


def _text(answer):
    """The text of one answer; `None` if there is none."""
    if isinstance(answer, (np.float32, np.float16)):
        answer = fewest_digits(answer, str(answer.dtype))
    elif isinstance(answer, np.generic):
        answer = answer.item()
    if isinstance(answer, str):
        return answer
    if isinstance(answer, int) and not isinstance(answer, bool):
        return str(answer)
    if not isinstance(answer, float) or not math.isfinite(answer):
        return None
    return str(int(answer) if answer.is_integer() else answer)
