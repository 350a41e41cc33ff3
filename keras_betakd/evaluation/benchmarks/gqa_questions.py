"""Reads the questions of GQA and makes their prompts (Hudson and Manning, 2019).

llava_gqa_testdev_balanced.jsonl    question_id, image, text; one object a line
testdev_balanced_questions.json     id -> question, answer, types, groups, ...
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from keras_betakd.evaluation.llava_protocol import (
    VQAQuestion,
    expect_ids_once,
    naming_file,
    read_questions,
    short_answer_prompt,
)
from keras_betakd.files import read_json

# Final operations of a question, which do not count as reasoning steps.
_NO_STEP = ("exist", "query: name", "choose name")


@dataclasses.dataclass(frozen=True)
class GQAQuestion(VQAQuestion):
    """One question.

    Args:
        id: The question's id in GQA.
        question: The question.
        answer: The right answer, in lower case.
        structural: "verify", "query", "choose", "logical" or "compare".
        semantic: "obj", "attr", "rel", "cat" or "global".
        words: The number of words of the question.
        steps: The number of reasoning steps that it takes.
        group: The kind of its answer ("color", "furniture"), or `None`.
        entailed: Ids of questions whose answers follow from this one's.
        balanced: Whether it counts for the accuracies; other questions are only used
            for the consistency.
        image: Anything that `load_image` takes, usually a path; read only when needed.

    Raises:
        ValueError: A field is of another type.

    Example:

    >>> GQAQuestion("1", "Is it red?", "yes", structural="verify").balanced
    True
    """

    answer: str
    structural: str = ""
    semantic: str = ""
    words: int = 0
    steps: int = 0
    group: str | None = None
    entailed: tuple[str, ...] = ()
    balanced: bool = True
    image: Any = None

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.answer, str):
            raise ValueError(
                f"Question {self.id!r}: `answer` must be a string. "
                f"Received: answer={self.answer!r}"
            )
        texts = (self.structural, self.semantic, self.group or "")
        if not all(isinstance(text, str) for text in texts) or not isinstance(
            self.balanced, bool
        ):
            raise ValueError(
                f"Question {self.id!r}: `structural`, `semantic` and `group` must be "
                "strings (`group` may be `None`), `balanced` True or False. Received: "
                f"structural={self.structural!r}, semantic={self.semantic!r}, "
                f"group={self.group!r}, balanced={self.balanced!r}"
            )

    @classmethod
    def from_annotation(cls, id: str, fields: Mapping, image: Any = None):
        """Makes the question of an entry of `testdev_balanced_questions.json`.

        Args:
            id: The entry's key.
            fields: The entry.
            image: The question's image.

        Raises:
            ValueError: The entry lacks a key or has another structure.

        Example:

        >>> types = {"structural": "verify", "semantic": "attr"}
        >>> entry = {"question": "Is it red?", "answer": "yes", "types": types}
        >>> entry |= {"isBalanced": True, "groups": {"global": None}, "semantic": []}
        >>> GQAQuestion.from_annotation("1", entry).words
        3
        """
        try:
            return cls(
                id=id,
                question=fields["question"],
                answer=fields["answer"],
                structural=fields["types"]["structural"],
                semantic=fields["types"]["semantic"],
                words=len(fields["question"].split()),
                steps=sum(map(_is_step, fields["semantic"])),
                group=fields["groups"]["global"],
                entailed=tuple(map(str, fields.get("entailed", ()))),
                balanced=fields["isBalanced"],
                image=image,
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"Question {id!r}: its entry must have question, answer, isBalanced, "
                f"types, groups and semantic, as GQA's files do. Received: {fields!r} "
                f"({type(error).__name__}: {error})"
            ) from error


def _is_step(step):
    text = f"{step['operation']}: {step['argument']}"
    return not any(words in text for words in _NO_STEP)


def load_gqa(
    question_file: str | os.PathLike,
    annotation_file: str | os.PathLike,
    image_folder: str | os.PathLike = "",
) -> list[GQAQuestion]:
    """Reads the questions of LLaVA's question file with GQA's annotations.

    Args:
        question_file: `llava_gqa_testdev_balanced.jsonl`.
        annotation_file: `testdev_balanced_questions.json`.
        image_folder: The folder of the images.

    Returns:
        The questions, in the order of the question file.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, or a question has no annotation or stands in it
            twice.

    Example:

    ```python
    questions = load_gqa("llava_gqa.jsonl", "testdev_balanced_questions.json", "images")
    ```
    """
    annotations = read_json(annotation_file)
    lines = read_questions(question_file, image_folder)
    expect_ids_once(lines, question_file)
    questions = []
    for name, text, image, _ in lines:
        if not isinstance(annotations, Mapping) or name not in annotations:
            raise ValueError(
                f"Each question needs an entry in {os.fspath(annotation_file)!r}. "
                f"Received: question_id={name!r}, which has none"
            )
        with naming_file(annotation_file):
            question = GQAQuestion.from_annotation(name, annotations[name], image)
        questions.append(dataclasses.replace(question, question=text))
    return questions


def gqa_prompt(question: GQAQuestion) -> str:
    """The prompt of a question in LLaVA's published form.

    Example:

    >>> gqa_prompt(GQAQuestion("1", "Is it red?", "yes"))
    '<image>\\nIs it red?\\nAnswer the question using a single word or phrase.'
    """
    return short_answer_prompt(question.question)
