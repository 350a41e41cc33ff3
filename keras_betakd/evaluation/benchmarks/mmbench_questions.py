"""Reads the questions of MMBench and makes their prompts (Liu et al., 2023).

The table is tab-separated, with the columns index, question, hint, A, B, C, D, answer,
category, image (base64), l2-category, split and others. A row with the index
k * 1,000,000 + i is a copy of row i with its options rotated. LLaVA-1.5 reports the
version 20230712, MobileVLM and Beta-KD 20231003.
"""

import base64
import dataclasses
import os
from collections.abc import Mapping, Sequence

from keras_betakd.data.images import IMAGE_MARK, neutralize_image_marks
from keras_betakd.data.scienceqa import LETTER_PROMPT_SUFFIX
from keras_betakd.evaluation.benchmarks.tsv_tables import read_tsv
from keras_betakd.evaluation.llava_protocol import VQAQuestion
from keras_betakd.evaluation.predictions import answers_of
from keras_betakd.files import expect_entries

OPTION_LETTERS = "ABCD"
INSTRUCTIONS = {"en": LETTER_PROMPT_SUFFIX, "cn": "\n请直接回答选项字母。"}
"""What LLaVA's generator appends, in the language of the questions."""

COPY_STEP = 1_000_000
SUBMISSION_COLUMNS = (
    "index",
    "question",
    *OPTION_LETTERS,
    "prediction",
    "answer",
    "split",
)

# Cells that count as empty in pandas, with which the published scripts read tables.
_EMPTY_CELLS = frozenset(
    "|#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN"
    "|None|n/a|nan|null".split("|")
)


def table_cell(value) -> str | None:
    """The text of a table's cell, or `None` where pandas reads an empty one.

    Example:

    >>> table_cell("cat"), table_cell("N/A"), table_cell(float("nan"))
    ('cat', None, None)
    """
    text = "" if value is None else str(value)
    return None if text in _EMPTY_CELLS else text


@dataclasses.dataclass(frozen=True)
class MMBenchQuestion(VQAQuestion):
    """One row: a question, or a copy of one with rotated options.

    Args:
        id: The row's index.
        question: The question.
        options: The cells A to D; `None` for an empty one.
        answer: The letter of the right option; `None` in the test split.
        hint: Text to read before the question, or `None`.
        category: One of the twenty leaf categories.
        l2_category: One of the six categories above them.
        split: "dev" or "test".
        image_base64: The image file in base64; decoded only when `image` is read.
        language: "en" or "cn", in which the instruction is.

    Raises:
        ValueError: The index is no integer, there are not one to four options, or the
            answer is none of their letters.

    Example:

    >>> copy = MMBenchQuestion(1000241, "What?", ("dog", "cat", None, None), "B")
    >>> copy.original, copy.choices
    ('241', {'A': 'dog', 'B': 'cat'})
    """

    options: tuple[str | None, ...]
    answer: str | None = None
    hint: str | None = None
    category: str = ""
    l2_category: str = ""
    split: str = ""
    image_base64: str = dataclasses.field(default="", repr=False)
    language: str = "en"

    def __post_init__(self):
        super().__post_init__()
        options = tuple(self.options)
        if (
            not self.id.isdecimal()
            or not 1 <= len(options) <= len(OPTION_LETTERS)
            or not all(text is None or isinstance(text, str) for text in options)
        ):
            raise ValueError(
                "A row needs an integer as its index, and one to four options that are "
                f"strings or `None`. Received: index {self.id!r}, options={options!r}"
            )
        if self.answer not in (None, *OPTION_LETTERS):
            raise ValueError(
                f"The right answer must be one of {list(OPTION_LETTERS)}, or `None` in "
                f"the test split. Received: index {self.id!r}, answer={self.answer!r}"
            )
        object.__setattr__(self, "id", str(int(self.id)))
        object.__setattr__(self, "options", options)

    @classmethod
    def from_row(cls, row: Mapping):
        """Makes the question of a row of the table.

        Args:
            row: The cells by column.

        Raises:
            ValueError: A column is missing, or the index is no integer.

        Example:

        >>> row = {"index": "241", "question": "What?", "A": "cat", "B": "None"}
        >>> MMBenchQuestion.from_row(row).options
        ('cat', None, None, None)
        """
        for column in ("index", "question", "A"):
            if row.get(column) is None:
                raise ValueError(
                    f"A row of MMBench needs the column {column!r}. "
                    f"Received: {sorted(map(str, row))}"
                )
        return cls(
            id=str(row["index"]),
            question=str(row["question"]),
            options=tuple(table_cell(row.get(letter)) for letter in OPTION_LETTERS),
            answer=table_cell(row.get("answer")),
            hint=table_cell(row.get("hint")),
            category=table_cell(row.get("category")) or "",
            l2_category=table_cell(row.get("l2-category")) or "",
            split=table_cell(row.get("split")) or "",
            image_base64=row.get("image") or "",
        )

    @property
    def original(self) -> str:
        """The index of the row that this one is a copy of; its own if it is none."""
        return str(int(self.id) % COPY_STEP)

    @property
    def choices(self) -> dict[str, str]:
        """The options that are not empty, by letter: an answer is matched with them."""
        cells = zip(OPTION_LETTERS, self.options, strict=False)
        return {letter: text for letter, text in cells if text is not None}

    @property
    def asked_options(self) -> list[str]:
        """The options in the prompt: all before the first that is empty or "none".

        An option that reads "None" thus hides those after it, even the right one.
        """
        asked = []
        for text in self.options:
            if text is None or _is_nothing(text):
                break
            asked.append(text)
        return asked

    @property
    def image(self) -> bytes | None:
        """The bytes of the image file, for `load_image`; `None` if the row has none."""
        if not self.image_base64:
            return None
        try:
            return base64.b64decode(self.image_base64, validate=True)
        except ValueError as error:
            raise ValueError(
                f"Question {self.id!r}: its image is not in base64 ({error})"
            ) from error


def _is_nothing(text):
    return text.lower() in ("nan", "none")


def load_mmbench(path: str | os.PathLike) -> list[MMBenchQuestion]:
    """Reads MMBench's table.

    Args:
        path: The file, for example `mmbench_dev_20230712.tsv`. One with `_cn` in its
            name is MMBench-CN: its questions are asked with a Chinese instruction.

    Returns:
        The rows in the file's order, rotated copies included. The images stay in
        base64. A cell that holds another row's index instead stands for that row's
        image, as in the toolkit's newer tables.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no such table, or an index stands in it twice. The message
            names the line and the row.

    Example:

    ```python
    questions = load_mmbench("mmbench_dev_20230712.tsv")
    ```
    """
    rows = read_tsv(path, ("index", "question", "A"))
    expect_entries(path, rows, "questions")
    images = {row["index"]: row.get("image") for _, row in rows}
    language = "cn" if "_cn" in os.path.basename(path).lower() else "en"
    questions: dict[str, MMBenchQuestion] = {}
    for place, row in rows:
        try:
            question = MMBenchQuestion.from_row(
                {**row, "image": _image_of(row, images)}
            )
            question = dataclasses.replace(question, language=language)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        if question.id in questions:
            raise ValueError(
                f"{place}: the index {question.id!r} stands in a row above already. "
                "Keep one row of each index."
            )
        questions[question.id] = question
    return list(questions.values())


def _image_of(row, images):
    """The base64 in a row's cell, or in that of the row whose index the cell holds."""
    cell = row.get("image") or ""
    found = images.get(cell, cell) or ""
    if found.isdecimal():
        raise ValueError(
            "`image` must be base64, or the index of a row that holds it. Received: "
            f"{cell!r} in the row of index {row.get('index')!r}"
        )
    return found


def mmbench_prompt(question: MMBenchQuestion) -> str:
    """The prompt of a row in LLaVA's published form, with its `asked_options`.

    Example:

    >>> question = MMBenchQuestion(241, "What?", ("cat", "dog"), hint="Look.")
    >>> print(mmbench_prompt(question))
    <image>
    Look.
    What?
    A. cat
    B. dog
    Answer with the option's letter from the given choices directly.
    """
    hint = question.hint
    hints = [] if hint is None or _is_nothing(hint) else [hint]
    lines = [
        f"{letter}. {text}"
        for letter, text in zip(OPTION_LETTERS, question.asked_options, strict=False)
    ]
    body = "\n".join([*hints, question.question, *lines])
    instruction = INSTRUCTIONS[question.language]
    return f"{IMAGE_MARK}\n{neutralize_image_marks(body)}{instruction}"


def mmbench_submission(
    questions: Sequence[MMBenchQuestion], predictions: Mapping[str, str]
) -> list[dict]:
    """Makes the rows of the file that the benchmark's server takes.

    Args:
        questions: The rows of the benchmark.
        predictions: The answers by index.

    Returns:
        For each row a dict with the keys `SUBMISSION_COLUMNS`, `None` for an empty
        cell. A prediction is what follows a model's thoughts, as in `score_mmbench`.
        `pandas.DataFrame(rows).to_excel("submission.xlsx", index=False)` writes them to
        the file.

    Raises:
        TypeError, ValueError: As `score_mmbench`.

    Example:

    >>> question = MMBenchQuestion(241, "What?", ("cat", "dog"))
    >>> rows = mmbench_submission([question], {241: "A"})
    >>> rows[0]["index"], rows[0]["prediction"]
    (241, 'A')
    """
    answers = answers_of(questions, predictions)
    rows = []
    for question in questions:
        values = {
            "index": int(question.id),
            "question": question.question,
            **question.choices,
            "prediction": answers.get(question.id),
            "answer": question.answer,
            "split": question.split,
        }
        rows.append({column: values.get(column) for column in SUBMISSION_COLUMNS})
    return rows
