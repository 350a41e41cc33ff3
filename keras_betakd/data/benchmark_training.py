"""Loads the training files of TextVQA and GQA to records.

TextVQA_0.5.1_train.json            {"data": [{question_id, image_id, answers, ...}]}
train_balanced_questions.json       {question id: {imageId, question, answer, ...}}
"""

import os
import reprlib

from keras_betakd.data.batches import Records, expect_on_error, record_error
from keras_betakd.data.images import expect_no_mark
from keras_betakd.data.loading import RecordMaker, loaded
from keras_betakd.data.vqa import question_chat
from keras_betakd.files import expect_entries, read_json


def load_textvqa(
    path: str | os.PathLike,
    image_folder: str | os.PathLike | None = None,
    prompt_suffix: str = "",
    on_error: str = "raise",
) -> Records:
    """Loads the questions of a training file of TextVQA; the benchmark scores others.

    The answer is the most frequent of the ten. The image is `<image_id>.jpg`.

    Args:
        path: `TextVQA_0.5.1_train.json`.
        image_folder: The folder of the images, `train_images`.
        prompt_suffix: Text appended to each question, for example "\\nAnswer the
            question using a single word or phrase."
        on_error: "raise", or "skip" to leave out the records that cannot be used: one
            warning counts them, and `skipped` holds the id and the reason of each.

    Returns:
        `LlavaRecord`s as a read-only sequence, in the file's order.

    Raises:
        FileNotFoundError: The file, the folder or (unless skipped) an image is missing.
        ValueError: `on_error` has another value, the file is damaged, `prompt_suffix`
            holds an image mark, or (unless skipped) a question cannot be used, and the
            message names its id.

    Example:

    ```python
    records = load_textvqa("TextVQA_0.5.1_train.json", "train_images")
    ```
    """
    expect_on_error(on_error)
    value = read_json(path)
    rows = value.get("data") if isinstance(value, dict) else None
    if not isinstance(rows, list):
        raise ValueError(
            f"{os.fspath(path)!r} must hold an object with a list under 'data', as "
            f"TextVQA's files do. Received: {reprlib.repr(value)}"
        )
    names = ("image_id", "question", "answers")
    read = _Reader(names, image_folder, prompt_suffix)
    expect_entries(path, rows, "questions")
    return loaded(rows, read.maker, read, on_error, "question_id")


def load_gqa(
    path: str | os.PathLike,
    image_folder: str | os.PathLike | None = None,
    prompt_suffix: str = "",
    on_error: str = "raise",
) -> Records:
    """Loads the questions of a training file of GQA; the benchmark scores others.

    The answer is the short one. The image is `<imageId>.jpg`.

    Args:
        path: `train_balanced_questions.json`, or a part of `train_all_questions`.
        image_folder: The folder of the images.
        prompt_suffix: As for `load_textvqa`.
        on_error: "raise", or "skip" to leave out the records that cannot be used: one
            warning counts them, and `skipped` holds the id and the reason of each.

    Returns:
        `LlavaRecord`s as a read-only sequence, in the file's order.

    Raises:
        FileNotFoundError: The file, the folder or (unless skipped) an image is missing.
        ValueError: As for `load_textvqa`.

    Example:

    ```python
    records = load_gqa("train_balanced_questions.json", "images")
    ```
    """
    expect_on_error(on_error)
    value = read_json(path)
    if not isinstance(value, dict) or not all(
        isinstance(v, dict) for v in value.values()
    ):
        raise ValueError(
            f"{os.fspath(path)!r} must hold an object with an entry for each question "
            f"id, as GQA's files do. Received: {reprlib.repr(value)}"
        )
    expect_entries(path, value, "questions")
    rows = [{**entry, "id": name} for name, entry in value.items()]
    read = _Reader(("imageId", "question", "answer"), image_folder, prompt_suffix)
    return loaded(rows, read.maker, read, on_error, "id")


class _Reader:
    """Reads rows whose keys of image, question and answer are `names`."""

    def __init__(self, names, image_folder, prompt_suffix):
        expect_no_mark("prompt_suffix", prompt_suffix)
        self.names = names
        self.maker = RecordMaker(image_folder)
        self.suffix = prompt_suffix

    def __call__(self, record_id, row):
        if not isinstance(row, dict) or any(
            row.get(name) is None for name in self.names
        ):
            message = f"an entry must have the keys {self.names}."
            raise record_error(record_id, message, reprlib.repr(row))
        image, question, answer = (row[name] for name in self.names)
        if not isinstance(image, (str, int)) or isinstance(image, bool):
            message = f"{self.names[0]!r} must be the name of an image."
            raise record_error(record_id, message, reprlib.repr(image))
        chat = question_chat(record_id, [f"{image}.jpg"], question, answer, self.suffix)
        return self.maker.record(record_id, chat)
