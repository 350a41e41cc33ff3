"""Reads the questions of TextVQA and makes their prompts (Singh et al., 2019).

llava_textvqa_val_v051_ocr.jsonl    question_id (that of the image!), image, text
TextVQA_0.5.1_val.json              "data": question_id, image_id, question, answers
"""

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from keras_betakd.data.images import neutralize_image_marks
from keras_betakd.evaluation.llava_protocol import (
    VQAQuestion,
    naming_file,
    queues,
    read_questions,
    require_texts,
    short_answer_prompt,
    take,
)
from keras_betakd.files import read_json

_OCR = "\nReference OCR token: "
_ANNOTATORS = 10


@dataclasses.dataclass(frozen=True)
class TextVQAQuestion(VQAQuestion):
    """One question.

    Args:
        id: The annotation's `question_id`.
        question: The question.
        image_id: The image's id.
        answers: The answers of ten people.
        ocr: The reference OCR tokens as the prompt lists them ("t1, t2"), or `None`
            for a prompt without that line.
        image: Anything that `load_image` takes, usually a path; read only when needed.

    Raises:
        ValueError: A field has a wrong type, or there are not ten answers: the score
            is defined for ten.

    Example:

    >>> TextVQAQuestion("1", "What brand?", "a1", ["dakota"] * 10).answers[0]
    'dakota'
    """

    image_id: str
    answers: Sequence[str]
    ocr: str | None = None
    image: Any = None

    def __post_init__(self):
        super().__post_init__()
        answers = self.answers
        if (
            not isinstance(answers, (list, tuple))
            or len(answers) != _ANNOTATORS
            or not all(isinstance(answer, str) for answer in answers)
        ):
            raise ValueError(
                f"Question {self.id!r}: `answers` must be {_ANNOTATORS} strings, one "
                f"of each annotator. Received: answers={answers!r}"
            )
        object.__setattr__(self, "answers", tuple(answers))
        object.__setattr__(self, "image_id", str(self.image_id))

    @property
    def key(self) -> tuple[str, str]:
        """The key by which the published scorer identifies a question.

        It is the image's id and the question, here with image marks neutralized.
        """
        return self.image_id, _as_prompted(self.question)


def load_textvqa(
    question_file: str | os.PathLike,
    annotation_file: str | os.PathLike,
    image_folder: str | os.PathLike = "",
) -> list[TextVQAQuestion]:
    """Reads the questions of LLaVA's question file with TextVQA's annotations.

    Args:
        question_file: `llava_textvqa_val_v051_ocr.jsonl`.
        annotation_file: `TextVQA_0.5.1_val.json`.
        image_folder: The folder of the images (`train_images`).

    Returns:
        The questions, in the order of the question file.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, or a question has no annotation.

    Example:

    ```python
    questions = load_textvqa("llava_textvqa.jsonl", "TextVQA_0.5.1_val.json", "images")
    ```
    """
    waiting = queues(_annotated(annotation_file), lambda question: question.key)
    questions = []
    lines = read_questions(question_file, image_folder)
    for number, (image_id, text, image, _) in enumerate(lines, 1):
        text, mark, tokens = text.partition(_OCR)
        where = f"{os.fspath(question_file)!r}, question {number}"
        question = take(waiting, (image_id, _as_prompted(text)), where)
        ocr = tokens if mark else None
        questions.append(
            dataclasses.replace(question, question=text, ocr=ocr, image=image)
        )
    return questions


def _annotated(path: str | os.PathLike) -> list[TextVQAQuestion]:
    entries = read_json(path)
    entries = entries.get("data") if isinstance(entries, Mapping) else None
    if not isinstance(entries, list):
        raise ValueError(
            f"{os.fspath(path)!r} must hold an object with a list under 'data', as "
            "TextVQA_0.5.1_val.json does."
        )
    keys = ("question_id", "question", "image_id")
    questions: dict[str, TextVQAQuestion] = {}
    for number, entry in enumerate(entries, 1):
        where = f"{os.fspath(path)!r}, entry {number}"
        name, text, image_id = require_texts(entry, keys, where)
        if name in questions:
            raise ValueError(
                f"{where}: the question_id {name!r} has an entry above already. "
                "Keep one entry of each."
            )
        with naming_file(path):
            question = TextVQAQuestion(name, text, image_id, entry.get("answers"))
        questions[question.id] = question
    return list(questions.values())


def textvqa_prompt(question: TextVQAQuestion) -> str:
    """The prompt of a question in LLaVA's published form.

    Example:

    >>> question = TextVQAQuestion("1", "What brand?", "a1", ["x"] * 10, "OLD, SPICE")
    >>> print(textvqa_prompt(question))
    <image>
    What brand?
    Reference OCR token: OLD, SPICE
    Answer the question using a single word or phrase.
    """
    ocr = "" if question.ocr is None else f"{_OCR}{question.ocr}"
    return short_answer_prompt(f"{question.question}{ocr}")


def textvqa_answers(
    questions: Sequence[TextVQAQuestion], lines: Iterable[Mapping]
) -> dict[str, str]:
    """The answers in the lines of a LLaVA answer file, by question id.

    There, `question_id` is the image's id, which several questions share. A line is
    therefore matched by it and by the question in its `prompt`, as in the published
    scorer.

    Args:
        questions: The questions.
        lines: Objects with `question_id`, `prompt` and `text`.

    Returns:
        The answers by the ids of `questions`.

    Raises:
        ValueError: A line lacks a key, its prompt has another form, or it belongs to
            no question or to one that was answered before.

    Example:

    >>> question = TextVQAQuestion("34602", "What brand?", "a1", ["dakota"] * 10)
    >>> prompt = "What brand?\\nAnswer the question using a single word or phrase."
    >>> line = {"question_id": "a1", "prompt": prompt, "text": "Dakota"}
    >>> textvqa_answers([question], [line])
    {'34602': 'Dakota'}
    """
    waiting = queues(questions, lambda question: question.key)
    answers = {}
    for number, line in enumerate(lines, 1):
        where = f"Answer {number}"
        keys = ("question_id", "prompt", "text")
        image_id, prompt, text = require_texts(line, keys, where)
        key = image_id, _as_prompted(_question_in(prompt, where))
        answers[take(waiting, key, where).id] = text
    return answers


def _as_prompted(question):
    # The answer files of this library hold prompts with neutralized image marks.
    return neutralize_image_marks(question).lower()


def _question_in(prompt, where):
    """The question in a logged prompt; its three known forms are tried in order."""
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: "):
        found = re.search(r"Question: (.*?) Short answer:", prompt, re.DOTALL)
        if found:
            return found[1]
    elif "Reference OCR token: " in prompt and len(lines) == 3:
        return lines[prompt.startswith("Reference OCR token:")]
    elif len(lines) == 2:
        return lines[0]
    raise ValueError(
        f"{where}: `prompt` must be a question, a line 'Reference OCR token: ...' or "
        "none, and an instruction, in two or three lines. A question with a line break "
        f"cannot be found in it. Received: {prompt!r}"
    )
