"""One way from a row of any kind to a checked record, which all loaders take."""

import os
import reprlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

from keras_betakd.data.batches import Records, record_error, usable_records
from keras_betakd.data.chat_shapes import Chat
from keras_betakd.data.chat_turns import Index
from keras_betakd.data.ids import is_id_or_none, with_unique_ids
from keras_betakd.data.image_marks import has_marks, translated
from keras_betakd.data.image_sources import (
    check_images_exist,
    expect_folder,
    image_source,
)
from keras_betakd.data.images import IMAGE_MARK
from keras_betakd.data.llava_records import LlavaRecord
from keras_betakd.data.sources import RowStream, rows_of
from keras_betakd.data.streams import RecordStream
from keras_betakd.data.tables import expect_columns


class RecordMaker:
    """Makes records of conversations, and notes those with marks but without images.

    A data set whose images are not found would be trained blind, its marks being text.
    This shows only where all records are known.

    Args:
        image_folder: The folder that the paths of images are relative to, and must
            not leave; `None` for paths as they are.

    Raises:
        FileNotFoundError: `image_folder` is no folder.

    Example:

    >>> from keras_betakd.data.chat_shapes import chat_of
    >>> chat = chat_of("7", {"query": "Hi", "response": "Hello!"})
    >>> RecordMaker(None).record("7", chat).prompts
    ('Hi',)
    """

    def __init__(self, image_folder: str | os.PathLike | None):
        expect_folder(image_folder)
        self.image_folder = image_folder
        self.is_strict = False
        self._blind: list[str] = []
        self._sees = False

    def record(self, record_id: str, chat: Chat) -> LlavaRecord:
        """Returns the record of a conversation; its image files must exist.

        Raises:
            FileNotFoundError: An image is missing; the message names the id.
            ValueError: The conversation cannot be trained; the message names the id.
        """
        prompts, responses = _in_turns(record_id, chat)
        images = _chosen_images(record_id, chat)
        prompts, images = translated(record_id, prompts, images)
        is_blind = not images and has_marks(prompts)
        if is_blind and self.is_strict:
            message = "its text has marks of images, but there is no image."
            raise record_error(record_id, message, reprlib.repr(prompts))
        if len(images) > 1 and not chat.is_llava and not has_marks(prompts):
            prompts[0] = f"{IMAGE_MARK}\n" * len(images) + prompts[0]
        record = LlavaRecord(
            id=record_id,
            prompts=prompts,
            responses=responses,
            images=[image_source(record_id, i, self.image_folder) for i in images],
            system=chat.turns.system,
        )
        check_images_exist(record)
        self._sees = self._sees or bool(images)
        if is_blind:
            self._blind.append(record_id)
        return record

    def expect_sight(self, stacklevel: int) -> None:
        """Raises if no record has an image, but some have marks; warns if some have.

        Args:
            stacklevel: As for `warnings.warn`.
        """
        if not self._blind:
            return
        ids = ", ".join(map(repr, self._blind[:10]))
        found = f"{len(self._blind)} records without image have marks of images in "
        found += f"their text: {ids}{', ...' if len(self._blind) > 10 else ''}."
        if self._sees:
            message = f"{found} The marks are read as plain text."
            warnings.warn(message, stacklevel=stacklevel + 1)
            return
        raise ValueError(
            f"No record has an image, but {found} Images are read from the keys "
            "'image' and 'images', or from `image_column`. If the marks are meant as "
            "text, pass the texts through `keras_betakd.data.neutralize_image_marks`."
        )


@overload
def loaded(
    source: list,
    maker: RecordMaker,
    read: Callable[[str, Any], LlavaRecord],
    on_error: str,
    id_column: str | None,
) -> Records: ...


@overload
def loaded(
    source: Any,
    maker: RecordMaker,
    read: Callable[[str, Any], LlavaRecord],
    on_error: str,
    id_column: str | None,
    needed: Sequence[str] = ...,
    optional: Sequence[str] = ...,
) -> Records | RecordStream: ...


def loaded(
    source: Any,
    maker: RecordMaker,
    read: Callable[[str, Any], LlavaRecord],
    on_error: str,
    id_column: str | None,
    needed: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> Records | RecordStream:
    """Returns the records of a source for a loader, which its caller called.

    Args:
        source: As for `rows_of`.
        maker: What `read` makes the records with.
        read: Returns the record of an id and its row.
        on_error: "raise" or "skip".
        id_column: The key of the ids; `None` for the numbers of the rows.
        needed: The columns that there must be; each row of a stream must have them.
        optional: As for `rows_of`.

    Returns:
        `Records`, or for a stream of rows a `RecordStream`.
    """
    rows = rows_of(source, on_error, needed, optional)
    each = needed if isinstance(rows, RowStream) else ()

    def checked(record_id, row):
        if each and isinstance(row, Mapping):
            expect_columns(f"Record {record_id!r}", row, each)
        if isinstance(row, Mapping) and id_column is not None:
            expect_id(record_id, row.get(id_column), id_column)
        return read(record_id, row)

    if isinstance(rows, RowStream):
        maker.is_strict = True
        return RecordStream(rows, checked, id_column, on_error)
    items = with_unique_ids(rows, id_column)
    records = Records(*usable_records(items, checked, on_error, stacklevel=4))
    maker.expect_sight(stacklevel=3)
    return records


def expect_id(record_id: str, own_id: Any, key: str) -> None:
    """Raises a `ValueError` for an id that is no string and no integer.

    Example:

    >>> expect_id("0", 7, "id")
    """
    if not is_id_or_none(own_id):
        message = (
            f"`{key}` must be a string or an integer; leave it out to get the index."
        )
        raise record_error(record_id, message, reprlib.repr(own_id))


def _in_turns(record_id: str, chat: Chat) -> tuple[list[str], list[str]]:
    """The prompts and responses of a conversation, which must take turns."""
    texts = chat.turns.texts
    if chat.is_llava and texts and texts[0][0] == "assistant":
        texts = texts[1:]
    speakers = [speaker for speaker, _ in texts]
    if speakers != [("user", "assistant")[i % 2] for i in range(len(texts))]:
        message = "the user ('human') and the assistant ('gpt') must take turns."
        raise record_error(record_id, message, reprlib.repr(speakers))
    if not texts or len(texts) % 2:
        message = (
            "each human turn needs an answer of 'gpt'; add it or take the turn out."
        )
        raise record_error(record_id, message, f"{len(texts)} turns")
    return [text for _, text in texts[::2]], [text for _, text in texts[1::2]]


def _chosen_images(record_id: str, chat: Chat) -> Sequence | Mapping:
    """The images in the order of the parts that are images, if there are any."""
    parts = chat.turns.images
    if not parts:
        return chat.images
    given = [] if isinstance(chat.images, Mapping) else chat.images
    following = iter(range(len(given)))
    numbers, images = [], []
    for part in parts:
        if not isinstance(part, Index):
            images.append(part)
            continue
        number = next(following, None) if part.number is None else part.number
        if type(number) is int and 0 <= number < len(given):
            numbers.append(number)
            images.append(given[number])
    if len(images) < len(parts) or set(numbers) != set(range(len(chat.images))):
        raise record_error(
            record_id,
            "the parts of its turns that are images must be all of its images, once.",
            f"{len(parts)} parts, {len(chat.images)} images beside the turns",
        )
    return images
