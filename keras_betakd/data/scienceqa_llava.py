"""Reads LLaVA's question file of ScienceQA together with the official files.

    llava_test_CQM-A.json               id, image ("<id>/image.png"), conversations
    problems.json                       id -> question, choices, answer, hint, ...
    images/test/<id>/image.png          for the questions that have an image

The training file, `llava_train_CQM-A.json`, is in LLaVA's training format: read it by
`load_llava` with `images/train` as the image folder.
"""

import os

from keras_betakd.data.batches import expect_on_error, record_error, usable_records
from keras_betakd.data.ids import with_unique_ids
from keras_betakd.data.images import IMAGE_MARK, neutralize_image_marks
from keras_betakd.data.llava_files import llava_record
from keras_betakd.data.llava_records import LlavaRecord
from keras_betakd.data.loading import RecordMaker
from keras_betakd.data.row_files import json_rows
from keras_betakd.data.scienceqa import scienceqa_prompt, scienceqa_response
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

    Each entry of the file must equal what this library makes of the same problem in the
    form "CQM-A" (`scienceqa_prompt`, `scienceqa_response`): prompt, right answer and
    whether there is an image. A score is then one of the published questions, whichever
    files they come from.

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
        return record

    items = with_unique_ids(json_rows(path, on_error), "id")
    return ScienceQARecords(*usable_records(items, read, on_error))


def _check_same(entry: LlavaRecord, record: ScienceQARecord):
    found = _without_mark(entry.prompts[0]), entry.responses, len(entry.images)
    expected = (
        _without_mark(scienceqa_prompt(record)),
        (scienceqa_response(record),),
        int(record.image is not None),
    )
    if found != expected:
        raise record_error(
            entry.id,
            "LLaVA's file and problems.json must hold the same question, in the form "
            f"CQM-A. problems.json gives {expected!r} (prompt, answer, images).",
            repr(found),
        )


def _without_mark(prompt):
    # The mark is at the end in LLaVA's file, at the front in its generator's prompts.
    return neutralize_image_marks(prompt.replace(IMAGE_MARK, "").strip())
