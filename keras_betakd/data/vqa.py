"""Questions about pictures, from a list, a table or VQAv2's files, to LLaVA records.

    {"image": "1.jpg", "question": "What color is the car?", "answer": "red"}

`load_vqa` reads such rows from memory, from a Hugging Face `datasets.Dataset` and from
Parquet files; `load_vqav2` reads the published pair of questions and annotations.
`LlavaDataset` makes batches of either.
"""

import collections
import os
import reprlib
from collections.abc import Mapping
from typing import Any

from keras_betakd.data.batches import Records, record_error
from keras_betakd.data.images import (
    IMAGE_MARK,
    expect_no_mark,
    neutralize_image_marks,
)
from keras_betakd.data.llava_files import load_llava
from keras_betakd.data.tables import expect_columns, table_rows
from keras_betakd.files import read_json


def load_vqa(
    source: Any,
    image_folder: str | os.PathLike | None = None,
    image: str = "image",
    question: str = "question",
    answer: str = "answer",
    id: str | None = None,
    prompt_suffix: str = "",
    missing: str = "raise",
) -> Records:
    """Loads questions with their answers, one a row.

    The cell of the picture holds whatever `load_image` reads, a list of such for
    several pictures, or `None` for a question of text alone. A list of answers stands
    for its most frequent one. Image marks that a question itself has are neutralized,
    and one for each picture is put in front of it.

    The picture files in a Hugging Face dataset are read when a batch needs them. Those
    in Parquet files are held in memory; for more than fits,
    `datasets.load_dataset("parquet", data_files=...)` leaves them on disk.

    Args:
        source: A list of dicts; an object with `column_names` and rows by index, as a
            `datasets.Dataset`; or the path of a Parquet file or of a folder of them.
        image_folder: The folder that pictures' paths start from, and must not leave.
            `None` takes the paths as they are.
        image, question, answer: What the columns are called. Only a list of dicts may
            lack the first.
        id: The column of the ids; `None` for the rows' numbers.
        prompt_suffix: Text put behind each question, for example "\\nAnswer the
            question using a single word or phrase."
        missing: "raise", or "skip" to leave out rows that lack a picture's file; see
            `load_llava`.

    Returns:
        `LlavaRecord`s as a read-only sequence, in the rows' order.

    Raises:
        FileNotFoundError: The Parquet files, the folder or (unless skipped) a picture
            is missing.
        ValueError: A column is missing, or a row is faulty; the message says which.
            `prompt_suffix` holds an image mark.
        TypeError: `source` is of another kind.
        ImportError: There are Parquet files to read, but no pyarrow.

    Example:

    >>> row = {"image": None, "question": "2 + 2?", "answer": ["4", "four", "4"]}
    >>> records = load_vqa([row], prompt_suffix="\\nOne word.")
    >>> records[0].prompts, records[0].responses
    (('2 + 2?\\nOne word.',), ('4',))
    """
    expect_no_mark("prompt_suffix", prompt_suffix)
    columns = [question, answer, *([] if id is None else [id])]
    is_list = isinstance(source, (list, tuple))
    rows = source if is_list else table_rows(source, image, [image, *columns])
    items = []
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            message = "a row must be a dict with a question and an answer."
            raise record_error(str(number), message, reprlib.repr(row))
        expect_columns(f"Row {number}", row, columns)
        name = number if id is None else row[id]
        cells = row.get(image), row[question], row[answer]
        items.append(_llava_item(name, *cells, prompt_suffix))
    return load_llava(items, image_folder, missing)


def load_vqav2(
    question_file: str | os.PathLike,
    annotation_file: str | os.PathLike,
    image_folder: str | os.PathLike | None = None,
    image_name: str = "COCO_{data_subtype}_{image_id:012d}.jpg",
    prompt_suffix: str = "",
    missing: str = "raise",
) -> Records:
    """Loads questions in VQAv2's files (also those of VQA and OK-VQA).

    The answer is the annotation's `multiple_choice_answer` or, without one, the most
    frequent of its `answers`.

    Args:
        question_file: For example `v2_OpenEnded_mscoco_train2014_questions.json`.
        annotation_file: For example `v2_mscoco_train2014_annotations.json`.
        image_folder: The folder of the pictures.
        image_name: How a picture is called, with the fields `image_id` of its question
            and `data_subtype` of the question file ("train2014").
        prompt_suffix: As for `load_vqa`.
        missing: As for `load_vqa`.

    Returns:
        `LlavaRecord`s as a read-only sequence, in the question file's order.

    Raises:
        FileNotFoundError: A file, the folder or (unless skipped) a picture is missing.
        ValueError: A file is damaged, or a question is faulty or has no annotation.
            `prompt_suffix` holds an image mark.

    Example:

    ```python
    records = load_vqav2("questions.json", "annotations.json", "coco/train2014")
    dataset = LlavaDataset(records, batch_size=8, shuffle=True)
    ```
    """
    expect_no_mark("prompt_suffix", prompt_suffix)
    header, questions = _entries(question_file, "questions")
    _, annotations = _entries(annotation_file, "annotations")
    answers = {annotation["question_id"]: annotation for annotation in annotations}
    subtype = header.get("data_subtype", "")
    items = []
    for entry in questions:
        name, image_id = entry["question_id"], entry.get("image_id")
        image = _image_name(name, image_name, image_id, subtype)
        answer = _answer(name, answers)
        items.append(
            _llava_item(name, image, entry.get("question"), answer, prompt_suffix)
        )
    return load_llava(items, image_folder, missing)


def _llava_item(name, images, question, answer, suffix):
    """A row as a record of `load_llava`, which looks for all further faults."""
    several = isinstance(images, (list, tuple))
    count = len(images) if several else int(images is not None)
    if not isinstance(question, str):
        raise record_error(
            str(name), "a question must be a string.", reprlib.repr(question)
        )
    if isinstance(answer, (list, tuple)):
        answer = _most_frequent(name, answer)
    prompt = f"{IMAGE_MARK}\n" * count + neutralize_image_marks(question) + suffix
    turns = [{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}]
    return {"id": name, "image": images, "conversations": turns}


def _most_frequent(name, answers):
    """Of answers that are equally frequent, the first."""
    if not answers or not all(isinstance(text, str) for text in answers):
        message = "a list of answers must hold strings, and at least one."
        raise record_error(str(name), message, reprlib.repr(answers))
    return collections.Counter(answers).most_common(1)[0][0]


def _entries(path, key):
    """The object in one of VQAv2's files, and the list that it is about."""
    value = read_json(path)
    entries = value.get(key) if isinstance(value, dict) else None
    if not isinstance(entries, list):
        raise ValueError(
            f"{os.fspath(path)!r} must hold an object with a list under {key!r}, as "
            "VQAv2's files do."
        )
    for number, entry in enumerate(entries):
        name = entry.get("question_id") if isinstance(entry, dict) else None
        if isinstance(name, bool) or not isinstance(name, (int, str)):
            raise ValueError(
                f"{os.fspath(path)!r}: entry {number} of {key!r} must be an object "
                f"with a `question_id`. Received: {reprlib.repr(entry)}"
            )
    return value, entries


def _image_name(name, pattern, image_id, subtype):
    try:
        return pattern.format(image_id=image_id, data_subtype=subtype)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise record_error(
            str(name),
            "the name of its picture is made of `image_id` and `data_subtype` by "
            f"`image_name`, {pattern!r} ({type(error).__name__}: {error}).",
            f"image_id={image_id!r}",
        ) from error


def _answer(name, annotations):
    if name not in annotations:
        raise record_error(str(name), "each question needs an annotation.", "none")
    annotation = annotations[name]
    answers = annotation.get("answers")
    if annotation.get("multiple_choice_answer") is None and isinstance(answers, list):
        return [a.get("answer") if isinstance(a, dict) else a for a in answers]
    return annotation.get("multiple_choice_answer")
