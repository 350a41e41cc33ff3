"""Loads conversations in the forms that tools for fine-tuning take."""

import os
from typing import Any

from keras_betakd.data.batches import Records, expect_on_error
from keras_betakd.data.chat_shapes import chat_of
from keras_betakd.data.loading import RecordMaker, loaded
from keras_betakd.data.streams import RecordStream


def load_chat(
    source: Any,
    image_folder: str | os.PathLike | None = None,
    image_column: str | None = None,
    chat_column: str | None = None,
    id_column: str = "id",
    on_error: str = "raise",
) -> Records | RecordStream:
    """Loads conversations about images, in whichever public form they are.

    The form of a record follows from its keys:

        messages                    [{"role": "user", "content": ...}, ...]
        conversations               [{"from": "human", "value": ...}, ...]
        conversation, texts         [{"user": ..., "assistant": ...}, ...]
        query, response             and `history`, [[question, answer], ...]
        instruction, output         and `input`, `history`
        prompt, completion          texts or messages

    A content is a text or a list of parts: `{"type": "text", "text": ...}`; `{"type":
    "image"}`, with its own source or without; `{"type": "image_url", "image_url":
    {"url": "data:image/png;base64,..."}}`. A system's text is a first turn, or under
    "system".

    Images are under "images" or "image": a source that `load_image` reads, or a list.
    Their places are those of `<image>` in the user's texts, of parts, or of another
    tool's marks (`<img>path</img>`, `<ImageHere>`, `<image_1>`, `<|image_pad|>`...). A
    record must have a mark for each image; without any mark, images stand in front of
    the first question (of `conversations`, only a single one does). A first answer
    without a question is left out of `conversations`, as in LLaVA's trainers; of other
    forms, it is an error.

    All records are checked here, before training starts, but those of a stream. Images
    are decoded when a batch needs them; those of a `datasets.Dataset` stay in it.

    Args:
        source: A list of dicts; the path of a JSON, jsonl or Parquet file, or of a
            folder of Parquet files of one split, or a pattern ("train-*.parquet");
            a `datasets.Dataset` or a `pyarrow.Table`. Or a stream: a
            `datasets.IterableDataset`, an iterator of dicts, tar files as WebDataset
            has them ("shards/*.tar").
        image_folder: The folder that the paths of images are relative to, and must
            not leave. With `None`, paths are used as they are.
        image_column: The key of the images, where it is another.
        chat_column: The key of the list of messages, where it is another, or where
            there are several.
        id_column: The key of the ids, strings or integers. A record without one gets
            its index; the second record "x" gets the id "x#2". All records may lack
            it, only if it is called "id".
        on_error: "raise", or "skip" to leave out the records that cannot be used: one
            warning counts them, and `skipped` holds the id and the reason of each.

    Returns:
        `LlavaRecord`s as a read-only sequence, in the rows' order. Of a stream, a
        `RecordStream`.

    Raises:
        FileNotFoundError: A file, the folder or (unless skipped) an image is missing.
        ValueError: `on_error` has another value; a file is damaged; a column that was
            named does not exist; some records have image marks, but none an image; or
            (unless skipped) a record cannot be used, and the message names its id.
        TypeError: `source` is of another type.
        ImportError: There are Parquet files to read, but pyarrow is not installed.

    Example:

    >>> messages = [{"role": "system", "content": "Answer in French."}]
    >>> messages += [{"role": "user", "content": "Hi"}]
    >>> messages += [{"role": "assistant", "content": "Salut"}]
    >>> (record,) = load_chat([{"messages": messages}])
    >>> record.system, record.prompts, record.responses
    ('Answer in French.', ('Hi',), ('Salut',))
    """
    expect_on_error(on_error)
    maker = RecordMaker(image_folder)

    def read(record_id, row):
        chat = chat_of(record_id, row, chat_column, image_column, id_column)
        return maker.record(record_id, chat)

    named = (image_column, chat_column, None if id_column == "id" else id_column)
    needed = [name for name in named if name is not None]
    return loaded(source, maker, read, on_error, id_column, needed)
