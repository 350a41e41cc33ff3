"""Reads the turns of a conversation: who speaks, what, and where images are in it."""

import dataclasses
import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_betakd.data.batches import record_error
from keras_betakd.data.image_keys import is_empty, looks_like_image
from keras_betakd.data.image_sources import is_no_image
from keras_betakd.data.images import IMAGE_MARK, neutralize_image_marks

USER = ("human", "user")
ASSISTANT = ("gpt", "assistant", "bot", "model")
SYSTEM = ("system", "developer")
_SPEAKER_KEYS = ("role", "from")
_TEXT_KEYS = ("content", "value")
_PAIRS = tuple((user, gpt) for user in USER for gpt in ASSISTANT) + (
    ("input", "output"),
    ("query", "response"),
)
_TEXT_PARTS = ("text", "input_text", "output_text")
_IMAGE_PARTS = ("image", "image_url", "input_image")
_PART_TEXT_KEYS = ("text", "value")
_IMAGE_KEYS = ("image", "image_url", "url", "path", "bytes", "value")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thought")
_WEIGHTS = (
    *("loss", "weight", "loss_weight", "train", "training", "trainable", "loss_mask"),
    *("loss_scale", "train_on_turn"),
)


@dataclasses.dataclass
class Turns:
    """The turns of a conversation.

    Attributes:
        texts: Pairs of "user" or "assistant" and a text, with `IMAGE_MARK` for each
            part that is an image.
        system: The system's text; `None` if there is none.
        images: What parts say of their images: a source, or the index of one among the
            record's images (`None` for the next one), as an `Index`.
    """

    texts: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    system: str | None = None
    images: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Index:
    """The place of an image among those of the record; `None` for the next one."""

    number: int | None


def read_turns(record_id: str, entries: Any, where: str) -> Turns:
    """Returns the turns of a list of messages, or of pairs of question and answer.

    Args:
        record_id: The record's id, for errors.
        entries: Dicts with `"role"` and `"content"`, or `"from"` and `"value"`, whose
            content is a text or a list of parts; or dicts with the texts of both
            speakers, such as `{"user": ..., "assistant": ...}`.
        where: The key of the list, for errors.

    Raises:
        ValueError: It is no such list.

    Example:

    >>> read_turns("7", [{"role": "user", "content": "Hi"}], "messages").texts
    [('user', 'Hi')]
    """
    if not isinstance(entries, (list, tuple)):
        message = f"the key {where!r} must hold a list of turns."
        raise record_error(record_id, message, reprlib.repr(entries))
    turns = Turns()
    for number, entry in enumerate(entries):
        pair = _pair(entry)
        if pair is None:
            _add_message(turns, record_id, number, entry)
            continue
        _expect_no_image(record_id, number, entry, (*pair, "system"))
        if entry.get("system"):
            add_system(turns, record_id, number, entry["system"])
        for speaker, key in zip(("user", "assistant"), pair, strict=True):
            add_text(turns, record_id, number, speaker, entry[key])
    return turns


def _pair(entry):
    """The keys of question and answer in one entry; `None` for a message."""
    if not isinstance(entry, Mapping) or any(key in entry for key in _SPEAKER_KEYS):
        return None
    found = [p for p in _PAIRS if all(entry.get(key) is not None for key in p)]
    return found[0] if len(found) == 1 else None


def _add_message(turns, record_id, number, entry):
    speaker = _value(entry, _SPEAKER_KEYS)
    content = _value(entry, _TEXT_KEYS)
    known = USER + ASSISTANT + SYSTEM
    is_message = isinstance(speaker, str) and isinstance(content, (str, list, tuple))
    if is_message and speaker not in known:
        raise record_error(
            record_id,
            f"turn {number} is of {speaker!r}, but 'from' (or 'role') must be one of "
            f"{known}: tools and other roles cannot be trained. Leave the record out, "
            "or rename the role.",
            reprlib.repr(entry),
        )
    if not is_message:
        raise record_error(
            record_id,
            f"turn {number} must be a dict with 'from' (or 'role'), one of {known}, "
            "and 'value' (or 'content'), a string or a list of parts.",
            reprlib.repr(entry),
        )
    _expect_plain(record_id, number, entry)
    if speaker in SYSTEM:
        add_system(turns, record_id, number, content)
    else:
        speaker = "user" if speaker in USER else "assistant"
        add_text(turns, record_id, number, speaker, content)


def _value(entry, keys):
    """The value of the one of two keys that has one; `None` if both have or none."""
    if not isinstance(entry, Mapping):
        return None
    first, second = entry.get(keys[0]), entry.get(keys[1])
    if first is None or second is None:
        return second if first is None else first
    return None


def _expect_plain(record_id, number, entry):
    """Raises for what would change the meaning of a turn and is not read."""
    if len(entry) == 2:  # who speaks and what, as nearly always
        return
    if entry.get("tool_calls") or entry.get("function_call"):
        message = f"turn {number} calls a tool, which cannot be trained."
        raise record_error(record_id, message, reprlib.repr(entry))
    for key in _THOUGHTS:
        if not is_empty(entry.get(key)):
            raise record_error(
                record_id,
                f"the thoughts of turn {number} are not read: put them into its text, "
                f"as the model should write them, or take {key!r} away.",
                f"{key}={reprlib.repr(entry[key])}",
            )
    _expect_no_image(record_id, number, entry, _SPEAKER_KEYS + _TEXT_KEYS)
    if _value(entry, _SPEAKER_KEYS) not in ASSISTANT:
        return
    for key in _WEIGHTS:
        if entry.get(key) is not None and not _is_one(entry[key]):
            raise record_error(
                record_id,
                f"turn {number} has a weight of its own, but every answer of a record "
                "is trained alike. Put those that are not to be trained into the "
                f"question, or take {key!r} away; a preprocessor with "
                '`trained_turns="last"` trains the last answer alone.',
                f"{key}={reprlib.repr(entry[key])}",
            )


def _is_one(weight):
    return isinstance(weight, (int, float, np.number, np.bool_)) and weight == 1


def _expect_no_image(record_id, number, entry, read):
    """Raises for an image of a turn, which is no part of its content."""
    for key, value in entry.items():
        if key not in read and looks_like_image(key, value):
            raise record_error(
                record_id,
                f"turn {number} has an image of its own under {key!r}, which is not "
                "read. Put it into the content, a list of parts such as {'type': "
                "'image', 'image': ...}, or into the record's 'images'.",
                f"{key}={reprlib.repr(value)}",
            )


def add_system(turns: Turns, record_id: str, number: int, content: Any) -> None:
    """Sets the system's text, which must come first and once.

    Raises:
        ValueError: It comes later, or twice, or is no text.

    Example:

    >>> turns = Turns()
    >>> add_system(turns, "7", 0, "Be brief.")
    >>> turns.system
    'Be brief.'
    """
    if isinstance(content, (list, tuple)):
        content = _joined(record_id, number, content, None)
    if not isinstance(content, str):
        message = "a system's text must be a string."
        raise record_error(record_id, message, reprlib.repr(content))
    if turns.texts or turns.system is not None:
        message = f"turn {number} is the system's, which comes first and once."
        raise record_error(record_id, message, reprlib.repr(content))
    turns.system = content if content.strip() else None


def add_text(
    turns: Turns, record_id: str, number: int, speaker: str, content: Any
) -> None:
    """Adds a turn of "user" or "assistant", a text or a list of parts.

    Raises:
        ValueError: The content is neither, or holds what is no text and no image.

    Example:

    >>> turns = Turns()
    >>> add_text(turns, "7", 0, "user", [{"type": "image"}, {"text": "What?"}])
    >>> turns.texts, turns.images
    ([('user', '<image>\\nWhat?')], [Index(number=None)])
    """
    if isinstance(content, (list, tuple)):
        images = turns.images if speaker == "user" else None
        content = _joined(record_id, number, content, images)
    if not isinstance(content, str):
        message = f"turn {number} must have a text, a string."
        raise record_error(record_id, message, reprlib.repr(content))
    turns.texts.append((speaker, content))


def _joined(record_id, number, parts, images):
    """The text of parts; what they say of their images is added to `images`."""
    text, in_front = "", True
    for part in parts:
        part = {"type": "text", "text": part} if isinstance(part, str) else part
        kind = _kind(part)
        words = _value(part, _PART_TEXT_KEYS) if kind in _TEXT_PARTS else None
        if isinstance(words, str):
            _expect_no_image(record_id, number, part, ("type", *_PART_TEXT_KEYS))
            # A mark in it is text: the parts say where the images are.
            text += neutralize_image_marks(words)
            in_front = in_front and not words.strip()
        elif kind in _IMAGE_PARTS and images is not None:
            # In front of a turn's text as all loaders write it, within it in place.
            text += f"{IMAGE_MARK}\n" if in_front else IMAGE_MARK
            images.append(_image(record_id, number, part))
        else:
            raise record_error(
                record_id,
                f"a part of turn {number} must be a text, or in the user's turns an "
                "image, as {'type': 'text', 'text': ...} and {'type': 'image'}; video, "
                "audio and other parts are not read.",
                reprlib.repr(part),
            )
    return text


def _kind(part):
    if not isinstance(part, Mapping):
        return None
    if part.get("type") is not None:
        return part["type"] if isinstance(part["type"], str) else None
    found = [key for key in ("text", "image", "image_url") if part.get(key) is not None]
    return found[0] if len(found) == 1 else None


def _image(record_id, number, part):
    """The source of an image part, or an `Index` of the record's images."""
    found = [part[key] for key in _IMAGE_KEYS if not is_no_image(part.get(key))]
    if len(found) > 1:
        message = f"an image of turn {number} must be given once."
        raise record_error(record_id, message, reprlib.repr(part))
    if not found:
        return Index(part.get("index"))
    source = found[0]
    if isinstance(source, Mapping) and "url" in source:  # OpenAI's form
        source = source["url"]
    return source
