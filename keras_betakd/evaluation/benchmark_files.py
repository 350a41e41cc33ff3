"""Reading the files that the VQA benchmarks are published in."""

import os
from collections.abc import Mapping, Sequence

from keras_betakd.files import read_jsonl

SHORT_ANSWER_SUFFIX = "\nAnswer the question using a single word or phrase."
"""What stands behind the questions of GQA, TextVQA, POPE and MME."""


def require_texts(fields: Mapping, keys: Sequence[str], where: str) -> list[str]:
    """The texts of some keys.

    Args:
        fields: What was read, for example a line of a question file.
        keys: Keys that must be there with a string. An id may be an integer.
        where: How to name `fields` in a message.

    Returns:
        The values, as strings.

    Raises:
        ValueError: A key is missing, or its value no string.

    Example:

    >>> require_texts({"question_id": 7, "text": "cat"}, ("question_id", "text"), "it")
    ['7', 'cat']
    """
    texts = []
    for key in keys:
        value = fields.get(key) if isinstance(fields, Mapping) else None
        is_id = key.endswith("id") and type(value) is int
        if not isinstance(value, str) and not is_id:
            raise ValueError(
                f"{where}: needs a string under the key {key!r}. Received: {fields!r}"
            )
        texts.append(str(value))
    return texts


def read_questions(
    path: str | os.PathLike, image_folder: str | os.PathLike = ""
) -> list[tuple[str, str, str, dict]]:
    """The lines of a question file whose questions want a word or phrase.

    Args:
        path: The file.
        image_folder: Where its images lie; put in front of their names.

    Returns:
        For each line its `question_id`, its text without `SHORT_ANSWER_SUFFIX`, the
        path of its image and all its fields.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is no JSON object, lacks a key, or its text does not end as
            the published ones do: the prompt would be another.

    Example:

    ```python
    read_questions("llava_pope_test.jsonl", "val2014")
    ```
    """
    questions = []
    for number, fields in enumerate(read_jsonl(path), 1):
        where = f"{os.fspath(path)!r}, question {number}"
        name, text, image = require_texts(
            fields, ("question_id", "text", "image"), where
        )
        if not text.endswith(SHORT_ANSWER_SUFFIX):
            raise ValueError(
                f"{where}: `text` must end with {SHORT_ANSWER_SUFFIX!r}, as in LLaVA's "
                f"question files. Received: {text!r}"
            )
        text = text.removesuffix(SHORT_ANSWER_SUFFIX)
        questions.append((name, text, os.path.join(image_folder, image), fields))
    return questions
