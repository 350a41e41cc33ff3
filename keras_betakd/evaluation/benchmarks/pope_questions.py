"""Reads the questions of POPE and makes their prompts (Li et al., 2023).

llava_pope_test.jsonl                            question_id, image, text, category
coco_pope_{random,popular,adversarial}.json      image, text, label; one a line
"""

import dataclasses
import os
from typing import Any

from keras_betakd.evaluation.llava_protocol import (
    VQAQuestion,
    expect_ids_once,
    naming_file,
    read_questions,
    require_texts,
    short_answer_prompt,
)
from keras_betakd.files import read_jsonl

POPE_CATEGORIES = ("adversarial", "popular", "random")
"""How the absent objects of a question were chosen; papers report all three."""

_USE_VERSION = "Use the label files of AoiDragon/POPE at its commit e3e39262."


@dataclasses.dataclass(frozen=True)
class POPEQuestion(VQAQuestion):
    """One question.

    Args:
        id: The question's id, unique over the three categories.
        question: The question, "Is there a ... in the image?".
        category: One of `POPE_CATEGORIES`.
        label: The right answer. As in the published scorer, any label but "no" counts
            as yes.
        image: Anything that `load_image` takes, usually a path; read only when needed.

    Raises:
        ValueError: The category is another, or the id or question has another type.

    Example:

    >>> POPEQuestion(0, "Is there a dog in the image?", "random", "no").label
    'no'
    """

    category: str
    label: str
    image: Any = None

    def __post_init__(self):
        super().__post_init__()
        _expect_category(self.id, self.category)


def _expect_category(name, category):
    if category not in POPE_CATEGORIES:
        raise ValueError(
            f"Question {name!r}: `category` must be one of {POPE_CATEGORIES}. "
            f"Received: category={category!r}"
        )


def load_pope(
    question_file: str | os.PathLike,
    label_folder: str | os.PathLike,
    image_folder: str | os.PathLike = "",
) -> list[POPEQuestion]:
    """Reads the questions of LLaVA's question file with the labels of POPE's files.

    The k-th question of a category gets the k-th label, as published. Image and wording
    of the two are compared, because one line too many or too few would give all further
    questions the labels of others.

    Args:
        question_file: `llava_pope_test.jsonl`.
        label_folder: The folder of `coco_pope_random.json` and so on, in the version
            of commit e3e39262 of AoiDragon/POPE, whose random set has 2,910 lines.
        image_folder: The folder of the images (`val2014`).

    Returns:
        The questions, in the order of the question file.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, or an id stands twice, or questions and labels do
            not agree.

    Example:

    ```python
    questions = load_pope("llava_pope_test.jsonl", "coco", "val2014")
    ```
    """
    lines = read_questions(question_file, image_folder)
    expect_ids_once(lines, question_file)
    with naming_file(question_file):
        categories = [
            require_texts(fields, ["category"], f"Question {name!r}")[0]
            for name, _, _, fields in lines
        ]
        for (name, *_), category in zip(lines, categories, strict=True):
            _expect_category(name, category)
    labels = {
        category: iter(_labels(label_folder, category, categories.count(category)))
        for category in dict.fromkeys(categories)
    }
    questions = []
    for (name, text, image, fields), category in zip(lines, categories, strict=True):
        *labelled, label = next(labels[category])
        if labelled != [fields["image"], text]:
            raise ValueError(
                f"{os.fspath(question_file)!r}: Question {name!r} ({category}) is "
                f"{[fields['image'], text]}, but the label in its place is about "
                f"{labelled}. {_USE_VERSION}"
            )
        questions.append(POPEQuestion(name, text, category, label, image))
    return questions


def _labels(folder, category, count):
    path = os.path.join(folder, f"coco_pope_{category}.json")
    labels = [
        require_texts(fields, ("image", "text", "label"), f"{path!r}, label {number}")
        for number, fields in enumerate(read_jsonl(path), 1)
    ]
    if len(labels) != count:
        raise ValueError(
            f"There must be one label to each question of the category {category!r}. "
            f"Received: {count} questions, {len(labels)} labels in {path!r}. "
            f"{_USE_VERSION}"
        )
    return labels


def pope_prompt(question: POPEQuestion) -> str:
    """The prompt of a question in LLaVA's published form.

    Example:

    >>> pope_prompt(POPEQuestion(0, "Is there a dog?", "random", "no"))
    '<image>\\nIs there a dog?\\nAnswer the question using a single word or phrase.'
    """
    return short_answer_prompt(question.question)
