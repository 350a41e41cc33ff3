"""Question and answer files in LLaVA's format, shared by the benchmarks.

A question file holds one JSON object a line with `question_id`, `image` and `text`; an
answer file one with `question_id`, `prompt` (the prompt without the image mark) and
`text`. The scorers take answers by id, so that one that is missing, unknown or given
twice never shifts the others, as it does where two files are read line by line.

Source: Liu et al. 2023 (LLaVA).
"""

import collections
import contextlib
import dataclasses
import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

from keras_betakd.data.batches import naming
from keras_betakd.data.images import IMAGE_MARK, neutralize_image_marks
from keras_betakd.files import expect_entries, read_jsonl
from keras_betakd.folders import inside

SHORT_ANSWER_SUFFIX = "\nAnswer the question using a single word or phrase."
"""The instruction after each question of GQA, TextVQA, POPE and MME."""


@dataclasses.dataclass(frozen=True)
class VQAQuestion:
    """The fields that the questions of all these benchmarks have.

    Args:
        id: The question's id, unique in its benchmark; integers become strings.
        question: The question, without the instruction that the prompt adds.

    Raises:
        ValueError: The id or the question is of another type.

    Example:

    >>> VQAQuestion(7, "Is it a cat?").id
    '7'
    """

    id: str
    question: str

    def __post_init__(self):
        if isinstance(self.id, bool) or not isinstance(self.id, (int, str)):
            raise ValueError(
                "`id` must be a string or an integer. Received: "
                f"id={self.id!r} of the question {self.question!r}"
            )
        if not isinstance(self.question, str):
            raise ValueError(
                f"Question {self.id!r}: `question` must be a string. "
                f"Received: question={self.question!r}"
            )
        object.__setattr__(self, "id", str(self.id))


_Question = TypeVar("_Question", bound=VQAQuestion)


def read_questions(
    path: str | os.PathLike, image_folder: str | os.PathLike = ""
) -> list[tuple[str, str, str, dict]]:
    """Reads a question file of a benchmark that is answered with a word or phrase.

    Args:
        path: The file.
        image_folder: The folder of its images; joined with their names, which must not
            lead out of it.

    Returns:
        For each line its `question_id`, its text without `SHORT_ANSWER_SUFFIX`, the
        path of its image and all its fields.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: There is no line, or one is no JSON object, lacks a key, its image
            lies outside `image_folder`, or its text does not end with
            `SHORT_ANSWER_SUFFIX`, so that the prompt would be another.

    Example:

    ```python
    read_questions("llava_pope_test.jsonl", "val2014")
    ```
    """
    questions = []
    lines = expect_entries(path, read_jsonl(path), "questions")
    for number, fields in enumerate(lines, 1):
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
        with naming_file(path), naming(name):
            image = str(inside(image_folder, image))
        questions.append((name, text, image, fields))
    return questions


@contextlib.contextmanager
def naming_file(path: str | os.PathLike):
    """Within, the message of a `ValueError` gets the name of the file that is read.

    Example:

    ```python
    with naming_file("testdev_balanced_questions.json"):
        GQAQuestion.from_annotation("1", {})
    ```
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)!r}: {error}") from error


def expect_ids_once(questions: Sequence[tuple], path: str | os.PathLike) -> None:
    """Raises a `ValueError` if two lines of `read_questions` have one id.

    Not for TextVQA, where the id is the image's.
    """
    seen: dict[str, int] = {}
    for number, (name, *_) in enumerate(questions, 1):
        if name in seen:
            raise ValueError(
                f"{os.fspath(path)!r}, question {number}: has the id {name!r} of "
                f"question {seen[name]}. Keep one line of each id."
            )
        seen[name] = number


def require_texts(fields: Mapping, keys: Sequence[str], where: str) -> list[str]:
    """The strings under these keys of an object, checked.

    Args:
        fields: The object, for example a line of a question file.
        keys: Keys that must be there with a string. An id may be an integer.
        where: The name of `fields` in an error message.

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


def short_answer_prompt(text: str) -> str:
    """A prompt with an image and the instruction to answer in a word or phrase.

    Image marks in the text itself are neutralized.

    Args:
        text: The question, with any text that the benchmark adds to it.

    Returns:
        The prompt, starting with `IMAGE_MARK`.

    Example:

    >>> short_answer_prompt("What is it?")
    '<image>\\nWhat is it?\\nAnswer the question using a single word or phrase.'
    """
    return f"{IMAGE_MARK}\n{neutralize_image_marks(text)}{SHORT_ANSWER_SUFFIX}"


def llava_answers(lines: Iterable[Mapping], unique: bool = False) -> dict[str, str]:
    """The answers in the lines of a LLaVA answer file, by question id.

    Of answers with the same id the last counts, as in the published scorers of GQA,
    ScienceQA and MMBench. For TextVQA and MME, where several questions share an id, use
    `textvqa_answers` and `mme_answers`.

    Args:
        lines: Objects with `question_id` and `text`, for example from `read_jsonl`.
        unique: Whether to raise for an id that occurs twice. Set it for POPE, whose
            published scorer would pair all further answers with the wrong labels.

    Returns:
        The answers by id, as the scorers take them.

    Raises:
        ValueError: A line lacks a key, or an id occurs twice with `unique`.

    Example:

    >>> llava_answers([{"question_id": 7, "text": "yes"}])
    {'7': 'yes'}
    """
    answers: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        name, text = require_texts(line, ("question_id", "text"), f"Answer {number}")
        if unique and name in answers:
            raise ValueError(
                f"Answer {number}: question {name!r} was answered before. Keep one "
                f"answer to each question. Received: {text!r} after {answers[name]!r}"
            )
        answers[name] = text
    return answers


def queues(
    questions: Iterable[_Question], key: Callable[[_Question], Hashable]
) -> dict[Hashable, collections.deque]:
    """Queues of questions by a key that several may share, in order; see `take`."""
    waiting: dict[Hashable, collections.deque] = {}
    for question in questions:
        waiting.setdefault(key(question), collections.deque()).append(question)
    return waiting


def take(waiting: dict[Hashable, collections.deque], key: Hashable, where: str):
    """Takes the next question with a key: the k-th line of a file gets the k-th.

    Args:
        waiting: The questions, as `queues` returned them.
        key: The key of the question.
        where: The name of the line in an error message.

    Raises:
        ValueError: There is no question with this key, or none is left.

    Example:

    >>> waiting = queues([VQAQuestion(7, "Is it a cat?")], lambda q: q.question)
    >>> take(waiting, "Is it a cat?", "Line 1").id
    '7'
    """
    if key not in waiting:
        raise ValueError(
            f"{where}: belongs to no question. Are questions and answers of one "
            f"version of the benchmark? Received: {key!r}"
        )
    if not waiting[key]:
        raise ValueError(
            f"{where}: occurs more often than its question. Keep one line for each "
            f"question. Received: {key!r}"
        )
    return waiting[key].popleft()
