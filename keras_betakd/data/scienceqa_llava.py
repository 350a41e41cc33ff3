"""Reads LLaVA's question file of ScienceQA together with the official files.

    llava_test_CQM-A.json               id, image ("<id>/image.png"), conversations
    problems.json                       id -> question, choices, answer, hint, ...
    images/test/<id>/image.png          for the questions that have an image

The training file, `llava_train_CQM-A.json`, is in LLaVA's training format: read it by
`load_llava` with `images/train` as the image folder.
"""

import dataclasses
import os

from keras_betakd.data.batches import expect_on_error, record_error, usable_records
from keras_betakd.data.ids import with_unique_ids
from keras_betakd.data.images import IMAGE_MARK, neutralize_image_marks
from keras_betakd.data.llava_files import llava_record
from keras_betakd.data.llava_records import LlavaRecord
from keras_betakd.data.loading import RecordMaker
from keras_betakd.data.row_files import json_rows
from keras_betakd.data.scienceqa import (
    FORMS,
    LETTER_PROMPT_SUFFIX,
    scienceqa_response,
)
from keras_betakd.data.scienceqa_records import (
    ScienceQARecord,
    ScienceQARecords,
    problem_record,
    read_mapping,
)


def load_scienceqa_llava(
    path: str | os.PathLike,
    directory: str | os.PathLike,
    split: str = "test",
    on_error: str = "raise",
) -> ScienceQARecords:
    """Loads the problems that LLaVA's question file holds, as records to score.

    The records are asked by the file's own text (`ScienceQARecord.prompt`), in
    whichever form it is: two circulate under this name. Each entry must be of the same
    problem as in `problems.json`: its text holds hint, question and every choice, its
    answer is the right letter, and it has an image if the problem has one.

    Args:
        path: `llava_test_CQM-A.json`.
        directory: The folder with `problems.json` and `images/`.
        split: The folder in `images/` that the paths of images are relative to.
        on_error: "raise", or "skip" to leave out the records that cannot be used: one
            warning counts them, and `skipped` holds the id and the reason of each.

    Returns:
        `ScienceQARecords`, in the file's order.

    Raises:
        FileNotFoundError: A file or (unless skipped) an image is missing.
        ValueError: `on_error` has another value, a file is damaged, or (unless skipped)
            an entry belongs to no problem or differs from it; the message then names
            its id.

    Example:

    ```python
    records = load_scienceqa_llava("scienceqa/llava_test_CQM-A.json", "scienceqa")
    score_scienceqa(records, answers, parser=parse_letter_strict)
    ```
    """
    expect_on_error(on_error)
    problems = read_mapping(directory, "problems.json")
    maker = RecordMaker(os.path.join(directory, "images", split))

    def read(record_id, item):
        entry = llava_record(record_id, item, maker)
        record = problem_record(directory, record_id, problems)
        _check_same(entry, record)
        return dataclasses.replace(record, prompt=_without_mark(entry.prompts[0]))

    items = with_unique_ids(json_rows(path, on_error), "id")
    return ScienceQARecords(*usable_records(items, read, on_error))


def _check_same(entry: LlavaRecord, record: ScienceQARecord):
    prompt = _words(entry.prompts[0])
    texts = record.hint, record.question, *record.choices
    lacking = [text for text in texts if _words(text) not in prompt]
    answers = [(scienceqa_response(record, form=form),) for form in FORMS]
    images = int(record.image is not None)
    if lacking or entry.responses not in answers or len(entry.images) != images:
        raise record_error(
            entry.id,
            "LLaVA's file and problems.json must hold the same question. problems.json "
            f"has the hint {record.hint!r}, the question {record.question!r}, the "
            f"choices {record.choices!r}, "
            f"the answer {answers[0][0]!r}, and {images} image(s).",
            f"{entry.prompts[0]!r}, the answer {entry.responses}, and "
            f"{len(entry.images)} image(s)",
        )


def _words(text):
    """A text as it is compared: forms differ in spaces, and marks are neutralized."""
    return " ".join(neutralize_image_marks(text).split())


def _without_mark(prompt):
    # The mark is at the end in LLaVA's file, at the front in its generator's prompts,
    # which append the instruction.
    text = prompt.replace(IMAGE_MARK, "").strip()
    return text.removesuffix(LETTER_PROMPT_SUFFIX)
