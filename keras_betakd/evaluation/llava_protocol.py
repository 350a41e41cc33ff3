"""Question and answer files in LLaVA's format, shared by the benchmarks.

A question file holds one JSON object a line with `question_id`, `image` and `text`; an
answer file one with `question_id`, `prompt` (the prompt without the image mark) and
`text`. The scorers take answers by id, so that one that is missing, unknown or given
twice never shifts the others, as it does where two files are read line by line.

Source: Liu et al. 2023 (LLaVA).
"""

import collections
import dataclasses
import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

from keras_betakd.data.batches import naming
from keras_betakd.data.images import IMAGE_MARK, neutralize_image_marks
from keras_betakd.evaluation.answer_text import final_answer, without_end_mark
from keras_betakd.files import read_jsonl
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
        ValueError: A line is no JSON object, lacks a key, its image lies outside
            `image_folder`, or its text does not end with `SHORT_ANSWER_SUFFIX`, so that
            the prompt would be another.

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
        with naming(name):
            path = str(inside(image_folder, image))
        questions.append((name, text, path, fields))
    return questions


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


def answers_of(
    questions: Sequence[VQAQuestion],
    predictions: Mapping[str, str],
    refuse_unknown: bool = False,
) -> dict[str, str | None]:
    """Checks answers and returns those to these questions, by id.

    Args:
        questions: The questions.
        predictions: Answers by question id, a string or an integer.
        refuse_unknown: Whether an answer to none of the questions is an error. By
            default it is ignored.

    Returns:
        The answers, in the order of the questions, without end marks and thoughts. A
        question may have none; `None` stands for thoughts without an answer, which
        count as wrong whatever a published scorer takes silence for.

    Raises:
        TypeError: `predictions` is not a mapping, or an answer not a string.
        ValueError: There are no questions, or an id occurs twice, or an answer
            belongs to no question and `refuse_unknown` is set.

    Example:

    >>> answers_of([VQAQuestion("7", "Is it a cat?")], {7: "yes", 8: "no"})
    {'7': 'yes'}
    """
    answers = texts_by_id(predictions)
    ids = dict.fromkeys(question.id for question in questions)
    if not questions or len(ids) < len(questions):
        raise ValueError(
            "`questions` must hold at least one question, and each id once. "
            f"Received: {len(questions)} questions with {len(ids)} different ids"
        )
    unknown = [name for name in answers if name not in ids]
    if refuse_unknown and unknown:
        raise ValueError(
            "Each answer must belong to one of the questions. Received: "
            f"{len(unknown)} of {len(answers)} that do not, the first for the id "
            f"{unknown[0]!r}; an id of a question is {next(iter(ids))!r}"
        )
    return {
        name: final_answer(without_end_mark(answers[name]))
        for name in ids
        if name in answers
    }


def normalized_answers(
    answers: Mapping[str, str | None], normalize: Callable[[str], str]
) -> dict[str, str | None]:
    """Applies a function to the answers of `answers_of`; `None` stays.

    Example:

    >>> normalized_answers({"7": "Yes", "8": None}, str.lower)
    {'7': 'yes', '8': None}
    """
    return {k: None if text is None else normalize(text) for k, text in answers.items()}


def texts_by_id(predictions: Mapping[str, str]) -> dict[str, str]:
    """The same answers with all ids as strings, checked.

    Args:
        predictions: Answers by question id, a string or an integer.

    Raises:
        TypeError: `predictions` is not a mapping, or an answer not a string.
        ValueError: An id occurs twice.

    Example:

    >>> texts_by_id({7: "yes"})
    {'7': 'yes'}
    """
    if not isinstance(predictions, Mapping):
        raise TypeError(
            "`predictions` must map question ids to answers: answers go by id, not by "
            f"place. Received: {type(predictions).__name__}"
        )
    answers = {str(name): text for name, text in predictions.items()}
    if len(answers) < len(predictions):
        raise ValueError(
            "`predictions` must hold each id once; 7 and '7' are one id. Received: "
            f"{len(predictions)} answers with {len(answers)} different ids"
        )
    for name, text in answers.items():
        if not isinstance(text, str):
            raise TypeError(
                f"The answer to question {name!r} must be a string; leave a question "
                f"that was not answered out. Received: {text!r}"
            )
    return answers


def queues(
    questions: Iterable[VQAQuestion], key: Callable[[VQAQuestion], Hashable]
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
