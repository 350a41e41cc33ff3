"""Reads the questions of MME and makes their prompts (Fu et al., 2023).

    MME_Benchmark_release_version/<task>/0001.png and 0001.txt, or
    MME_Benchmark_release_version/<task>/images/ and questions_answers_YN/

A text file has two lines, "question<TAB>Yes" and "question<TAB>No", about one image.
"""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from keras_betakd.data.images import neutralize_image_marks
from keras_betakd.evaluation.llava_protocol import (
    SHORT_ANSWER_SUFFIX,
    VQAQuestion,
    naming_file,
    queues,
    require_texts,
    short_answer_prompt,
    take,
)
from keras_betakd.files import open_text
from keras_betakd.folders import inside

MME_PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
"""The ten tasks of the number that papers report, "MME-P"."""

MME_COGNITION = (
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
)
"""The four tasks of MME's other sum."""

_ENDING = "Please answer yes or no."


@dataclasses.dataclass(frozen=True)
class MMEQuestion(VQAQuestion):
    """One of the two questions about an image.

    Args:
        id: The question's id, unique over all tasks: "existence/0001#2".
        question: The question, with its ending "Please answer yes or no."
        task: One of `MME_PERCEPTION` or `MME_COGNITION`.
        file: The name of its text file without the ending ".txt".
        answer: The right answer, "yes" or "no".
        image: Anything that `load_image` takes, usually a path; read only when needed.

    Raises:
        ValueError: The task or the answer is another, or the id or question has
            another type.

    Example:

    >>> text = "Is it a 7? Please answer yes or no."
    >>> MMEQuestion("OCR/1#1", text, "OCR", "1", "No").answer
    'no'
    """

    task: str
    file: str
    answer: str
    image: Any = None

    def __post_init__(self):
        super().__post_init__()
        if self.task not in MME_PERCEPTION + MME_COGNITION:
            raise ValueError(
                f"Question {self.id!r}: `task` must be one of "
                f"{MME_PERCEPTION + MME_COGNITION}. Received: task={self.task!r}"
            )
        object.__setattr__(self, "file", str(self.file))
        object.__setattr__(self, "answer", str(self.answer).lower())
        if self.answer not in ("yes", "no"):
            raise ValueError(
                f"Question {self.id!r}: `answer` must be 'yes' or 'no'. "
                f"Received: answer={self.answer!r}"
            )


def load_mme(
    directory: str | os.PathLike,
    tasks: Sequence[str] = MME_PERCEPTION + MME_COGNITION,
) -> list[MMEQuestion]:
    """Reads the questions of a folder of MME, in either layout.

    Args:
        directory: The folder `MME_Benchmark_release_version`.
        tasks: The tasks to read; `MME_PERCEPTION` is enough for the reported number.

    Returns:
        The questions, task by task, in the order of the files' names.

    Raises:
        FileNotFoundError: A task or an image is missing.
        ValueError: A text file is not two lines of question, tab and Yes or No, or a
            file is a link that leads out of `directory`.

    Example:

    ```python
    questions = load_mme("MME_Benchmark_release_version", MME_PERCEPTION)
    ```
    """
    return [q for task in tasks for q in _read_task(directory, task)]


def _read_task(directory, task):
    texts, images = f"{task}/questions_answers_YN", f"{task}/images"
    if not os.path.isdir(os.path.join(directory, texts)):
        texts = images = task
    paths = {
        _stem(name): str(inside(directory, f"{images}/{name}"))
        for name in sorted(os.listdir(os.path.join(directory, images)))
        if not name.endswith(".txt")
    }
    folder = os.path.join(directory, texts)
    names = sorted(name for name in os.listdir(folder) if name.endswith(".txt"))
    if not names:
        raise FileNotFoundError(
            "A task's folder holds a text file for each image, or has them in "
            f"questions_answers_YN. Received: {folder!r}, which has none"
        )
    return [
        question
        for name in names
        for question in _read_file(
            str(inside(directory, f"{texts}/{name}")), task, paths
        )
    ]


def _stem(name):
    """The name up to the first period, which text file and image have in common."""
    return name.split(".")[0]


def _read_file(path, task, images):
    stem = _stem(os.path.basename(path))
    if stem not in images:
        raise FileNotFoundError(f"There is no image to the questions in {path!r}.")
    with open_text(path) as file:
        lines = [line.strip().split("\t") for line in file if line.strip()]
    damaged = any("\0" in text for fields in lines for text in fields)
    if damaged or [len(fields) for fields in lines] != [2, 2]:
        raise ValueError(
            f"{path!r} must hold two lines of a question, a tab and Yes or No. "
            f"Received: {lines}"
        )
    with naming_file(path):
        return [
            MMEQuestion(f"{task}/{stem}#{k}", text, task, stem, answer, images[stem])
            for k, (text, answer) in enumerate(lines, 1)
        ]


def mme_prompt(question: MMEQuestion) -> str:
    """The prompt of a question in LLaVA's published form.

    LLaVA's instruction replaces the question's own "Please answer yes or no."

    Example:

    >>> text = "Is it a 7? Please answer yes or no."
    >>> mme_prompt(MMEQuestion("OCR/1#1", text, "OCR", "1", "yes"))
    '<image>\\nIs it a 7?\\nAnswer the question using a single word or phrase.'
    """
    return short_answer_prompt(question.question.removesuffix(_ENDING).rstrip())


def mme_answers(
    questions: Sequence[MMEQuestion], lines: Iterable[Mapping]
) -> dict[str, str]:
    """The answers in the lines of a LLaVA answer file, by question id.

    There, `question_id` is "<task>/<image>", the same for both questions about it. A
    line is therefore matched by it and by its `prompt`, with LLaVA's instruction
    replaced by MME's after one space or, where there is no such question, after two.
    Image marks in the text are neutralized on both sides, as in the prompts of this
    library.

    Args:
        questions: The questions.
        lines: Objects with `question_id`, `prompt` and `text`.

    Returns:
        The answers by the ids of `questions`.

    Raises:
        ValueError: A line lacks a key, or it belongs to no question or to one that
            was answered before.

    Example:

    >>> text = "A 7? Please answer yes or no."
    >>> question = MMEQuestion("OCR/1#1", text, "OCR", "1", "yes")
    >>> prompt = "A 7?\\nAnswer the question using a single word or phrase."
    >>> line = {"question_id": "OCR/1.jpg", "prompt": prompt, "text": "Yes"}
    >>> mme_answers([question], [line])
    {'OCR/1#1': 'Yes'}
    """
    waiting = queues(
        questions, lambda q: (q.task, q.file, neutralize_image_marks(q.question))
    )
    answers = {}
    for number, line in enumerate(lines, 1):
        where = f"Answer {number}"
        keys = ("question_id", "prompt", "text")
        name, prompt, text = require_texts(line, keys, where)
        task, file = name.split("/")[0], _stem(name.split("/")[-1])
        question = neutralize_image_marks(prompt)
        question = question.replace(SHORT_ANSWER_SUFFIX.strip(), "").strip()
        if _ENDING not in question:
            spaces = " " if (task, file, f"{question} {_ENDING}") in waiting else "  "
            question = f"{question}{spaces}{_ENDING}"
        answers[take(waiting, (task, file, question), where).id] = text
    return answers
