"""Reads questions about images from lists, tables and VQAv2's files to records.

    {"image": "1.jpg", "question": "What color is the car?", "answer": "red"}

`load_vqa` reads such rows from memory, from a Hugging Face `datasets.Dataset`, from
files and from streams; `load_vqav2` reads the published pair of questions and
annotations. `LlavaDataset` makes batches of the records of both.
"""

import os
import reprlib
from collections.abc import Mapping
from typing import Any

from keras_betakd.data.answers import answer_text, expect_no_list_as_text
from keras_betakd.data.batches import Records, expect_on_error, record_error
from keras_betakd.data.chat_shapes import Chat, expect_no_media
from keras_betakd.data.chat_turns import Turns
from keras_betakd.data.image_keys import images_of
from keras_betakd.data.images import expect_no_mark
from keras_betakd.data.loading import RecordMaker, loaded
from keras_betakd.data.row_files import is_csv_file
from keras_betakd.data.streams import RecordStream
from keras_betakd.data.tables import expect_columns
from keras_betakd.files import expect_entries, read_json

IMAGE_COLUMN = "image"
"""The default name of the column of the images."""


def load_vqa(
    source: Any,
    image_folder: str | os.PathLike | None = None,
    image_column: str = IMAGE_COLUMN,
    question_column: str = "question",
    answer_column: str = "answer",
    id_column: str | None = None,
    prompt_suffix: str = "",
    on_error: str = "raise",
) -> Records | RecordStream:
    """Loads questions with their answers, one in each row.

    The image column holds a source that `load_image` reads, a list of sources for
    several images, or `None` for a question of text alone. The answer column holds a
    text, a number, or a list of them or of `{"answer": ...}`, of which the most
    frequent one is used. One mark for each image is put in front of the question,
    unless it has as many marks itself.

    The image files in a Hugging Face dataset are read when a batch needs them. Those
    in Parquet files are kept in memory; if they do not fit, load the files by
    `datasets.load_dataset("parquet", data_files=...)`, which leaves them on disk.

    Args:
        source: A list of dicts; the path of a JSON, jsonl, CSV, TSV or Parquet file, of
            a folder of Parquet files of one split, or a pattern ("train-*.parquet"); a
            `pyarrow.Table`, or an object with `column_names` and rows by index, as a
            `datasets.Dataset`. Or a stream: a `datasets.IterableDataset`, an iterator
            of dicts, tar files as WebDataset has them ("shards/*.tar").
        image_folder: The folder that the paths of images are relative to, and must
            not leave. With `None`, paths are used as they are.
        image_column: The column of the images. Rows of a list, of JSON or CSV may lack
            it, for questions of text alone; all of them, only if it is called "image".
        question_column: The column of the questions.
        answer_column: The column of the answers.
        id_column: The column of the ids; `None` for the rows' numbers, from 0.
        prompt_suffix: Text appended to each question, for example "\\nAnswer the
            question using a single word or phrase."
        on_error: "raise", or "skip" to leave out the records that cannot be used: one
            warning counts them, and `skipped` holds the id and the reason of each.

    Returns:
        `LlavaRecord`s as a read-only sequence, in the rows' order. Of a stream, a
        `RecordStream`.

    Raises:
        FileNotFoundError: The file, the folder or (unless skipped) an image is missing.
        ValueError: `on_error` has another value; a column does not exist, and the
            message lists those that do; `prompt_suffix` holds an image mark; some rows
            have image marks, but none an image; or (unless skipped) a row cannot be
            used, and the message names its id.
        TypeError: `source` is of another type.
        ImportError: There are Parquet files to read, but pyarrow is not installed.

    Example:

    >>> row = {"image": None, "question": "2 + 2?", "answer": ["4", "four", "4"]}
    >>> records = load_vqa([row], prompt_suffix="\\nOne word.")
    >>> records[0].prompts, records[0].responses
    (('2 + 2?\\nOne word.',), ('4',))
    """
    expect_on_error(on_error)
    expect_no_mark("prompt_suffix", prompt_suffix)
    maker = RecordMaker(image_folder)
    needed = [question_column, answer_column]
    if id_column is not None:
        needed.append(id_column)
    is_default = image_column == IMAGE_COLUMN
    is_csv = is_csv_file(source)

    def read(record_id, row):
        if not isinstance(row, Mapping):
            message = "a row must be a dict with a question and an answer."
            raise record_error(record_id, message, reprlib.repr(row))
        expect_columns(f"Record {record_id!r}", row, needed)
        expect_no_media(record_id, row)
        images = images_of(record_id, row, None if is_default else image_column, needed)
        question, answer = row[question_column], row[answer_column]
        if is_csv:
            expect_no_list_as_text(record_id, answer)
        chat = question_chat(record_id, images, question, answer, prompt_suffix)
        return maker.record(record_id, chat)

    return loaded(
        *(source, maker, read, on_error, id_column),
        needed=needed if is_default else [image_column, *needed],
        optional=[image_column] if is_default else [],
    )


def load_vqav2(
    question_file: str | os.PathLike,
    annotation_file: str | os.PathLike,
    image_folder: str | os.PathLike | None = None,
    image_name: str = "COCO_{data_subtype}_{image_id:012d}.jpg",
    prompt_suffix: str = "",
    on_error: str = "raise",
) -> Records:
    """Loads the questions in VQAv2's files (also those of VQA and OK-VQA).

    The answer is the annotation's `multiple_choice_answer` or, without one, the most
    frequent of its `answers`.

    Args:
        question_file: For example `v2_OpenEnded_mscoco_train2014_questions.json`.
        annotation_file: For example `v2_mscoco_train2014_annotations.json`.
        image_folder: The folder of the images.
        image_name: The format string of image names, with the fields `image_id`, of the
            question, and `data_subtype`, of the question file ("train2014").
        prompt_suffix: As for `load_vqa`.
        on_error: "raise", or "skip" to leave out the records that cannot be used: one
            warning counts them, and `skipped` holds the id and the reason of each.

    Returns:
        `LlavaRecord`s as a read-only sequence, in the question file's order.

    Raises:
        FileNotFoundError: A file, the folder or (unless skipped) an image is missing.
        ValueError: `on_error` has another value, a file is damaged, `prompt_suffix`
            holds an image mark, or (unless skipped) a question cannot be used or has no
            annotation, and the message names its id.

    Example:

    ```python
    records = load_vqav2("questions.json", "annotations.json", "coco/train2014")
    dataset = LlavaDataset(records, batch_size=8, shuffle=True)
    ```
    """
    expect_on_error(on_error)
    expect_no_mark("prompt_suffix", prompt_suffix)
    maker = RecordMaker(image_folder)
    header, questions = _entries(question_file, "questions", on_error)
    _, annotations = _entries(annotation_file, "annotations", on_error)
    answers = {a["question_id"]: a for a in annotations if isinstance(a, dict)}
    subtype = header.get("data_subtype", "")

    def read(record_id, entry):
        image = _image_name(record_id, image_name, entry.get("image_id"), subtype)
        answer = _answer(record_id, entry["question_id"], answers)
        question = entry.get("question")
        chat = question_chat(record_id, [image], question, answer, prompt_suffix)
        return maker.record(record_id, chat)

    return loaded(questions, maker, read, on_error, "question_id")


def question_chat(
    record_id: str, images: Any, question: Any, answer: Any, suffix: str
) -> Chat:
    """Returns a question with its answer as a conversation, for `RecordMaker`.

    Raises:
        ValueError: The question is empty or no text, or the answer no text or number.

    Example:

    >>> question_chat("7", [], "2 + 2?", 4, " Now.").turns.texts
    [('user', '2 + 2? Now.'), ('assistant', '4')]
    """
    if not isinstance(question, str):
        message = "a question must be a string."
        raise record_error(record_id, message, reprlib.repr(question))
    if not question.strip():
        message = (
            "a question must not be empty. `load_captions` reads images with a text "
            "and no question."
        )
        raise record_error(record_id, message, repr(question))
    answer = answer_text(record_id, answer)
    turns = Turns([("user", question + suffix), ("assistant", answer)])
    return Chat(turns, images)


def _entries(path, key, on_error):
    """Reads the object in one of VQAv2's files, and its list under `key`.

    An entry without a valid `question_id` raises a `ValueError`; with `on_error="skip"`
    the error takes the place of the entry.
    """
    value = read_json(path)
    entries = value.get(key) if isinstance(value, dict) else None
    if not isinstance(entries, list):
        raise ValueError(
            f"{os.fspath(path)!r} must hold an object with a list under {key!r}, as "
            "VQAv2's files do."
        )
    expect_entries(path, entries, key)
    checked = []
    for number, entry in enumerate(entries):
        name = entry.get("question_id") if isinstance(entry, dict) else None
        if isinstance(name, bool) or not isinstance(name, (int, str)):
            entry = ValueError(
                f"{os.fspath(path)!r}: entry {number} of {key!r} must be an object "
                f"with a `question_id`. Received: {reprlib.repr(entry)}"
            )
            if on_error == "raise":
                raise entry
        checked.append(entry)
    return value, checked


def _image_name(record_id, pattern, image_id, subtype):
    try:
        return pattern.format(image_id=image_id, data_subtype=subtype)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise record_error(
            record_id,
            "the name of its image is made of `image_id` and `data_subtype` by "
            f"`image_name`, {pattern!r} ({type(error).__name__}: {error}).",
            f"image_id={image_id!r}",
        ) from error


def _answer(record_id, question_id, annotations):
    if question_id not in annotations:
        raise record_error(record_id, "each question needs an annotation.", "none")
    annotation = annotations[question_id]
    chosen = annotation.get("multiple_choice_answer")
    return annotation.get("answers") if chosen is None else chosen
