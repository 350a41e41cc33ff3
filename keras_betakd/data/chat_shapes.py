"""The shapes that conversations have in public data, by their keys; all become `Chat`.

messages                    ms-swift, LLaMA-Factory, TRL, Qwen, OpenAI
conversations               LLaVA, ShareGPT
conversation                XTuner
texts                       the Cauldron, FineVision
query, response (history)   ms-swift
instruction, output         Alpaca
prompt, completion          TRL
"""

import dataclasses
import re
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from keras_betakd.data.batches import record_error
from keras_betakd.data.chat_turns import Index, Turns, add_text, read_turns
from keras_betakd.data.image_keys import images_of, is_empty

SYSTEM_KEYS = ("system", "system_prompt", "system_message")
_WEIGHTS = ("weight", "loss", "loss_weight", "train", "loss_mask")

REFUSED = {
    **dict.fromkeys(
        ("video", "videos", "video_path", "audio", "audios", "audio_path"),
        "video and audio are not read, only images under 'image' or 'images'.",
    ),
    "tools": "tools cannot be trained.",
    "objects": "objects and boxes are not put into the text: write them there.",
}


@dataclasses.dataclass
class Chat:
    """What a row of any shape says, before it is checked.

    Args:
        turns: The turns.
        images: The images of the row in order, or by their marks.
        is_llava: Whether the rules of LLaVA's trainers hold: a first answer without a
            question is left out, and several images must have marks.
    """

    turns: Turns
    images: list | Mapping
    is_llava: bool = False


def chat_of(
    record_id: str,
    row: Any,
    chat_column: str | None = None,
    image_column: str | None = None,
    id_column: str | None = "id",
) -> Chat:
    """Returns the conversation of a row, whose shape follows from its keys.

    Args:
        record_id: The record's id, for errors.
        row: A dict.
        chat_column: The key of the messages; `None` to find it.
        image_column: The key of the images; `None` for "images" or "image".
        id_column: The key of the ids.

    Raises:
        ValueError: The row has no known shape or more than one, or holds what is not
            read. The message names the keys.

    Example:

    >>> chat_of("7", {"query": "Hi", "response": "Hello!"}).turns.texts
    [('user', 'Hi'), ('assistant', 'Hello!')]
    """
    if not isinstance(row, Mapping):
        message = "a record must be a dict with a conversation."
        raise record_error(record_id, message, reprlib.repr(row))
    expect_no_media(record_id, row)
    _expect_to_be_trained(record_id, row, chat_column)
    shape = chat_column or _shape(record_id, row)
    turns = _READERS.get(shape, _listed)(record_id, row, shape)
    _add_system_key(turns, record_id, row)
    read = {id_column, *SYSTEM_KEYS, *_KEYS.get(shape, (shape,))}
    read.update(_BESIDE.get(shape, ()))
    images = images_of(record_id, row, image_column, read, _holds_images(turns))
    return Chat(turns, images, is_llava=shape == "conversations")


def expect_no_media(record_id: str, row: Mapping) -> None:
    """Raises a `ValueError` for video, audio and other things that are not read."""
    for key in sorted(REFUSED.keys() & row.keys()):
        if not is_empty(row[key]):
            reason = REFUSED[key]
            raise record_error(record_id, reason, f"{key}={reprlib.repr(row[key])}")


def _expect_to_be_trained(record_id, row, chat_column):
    """Raises for answers of which a data set says that they are not to be given."""
    # A label 0 may be a class, but not beside a completion: there it is KTO's.
    is_kto = row.get("completion") is not None
    for key in ("label", "kto_tag"):
        value = row.get(key)
        if _says_no(value) and (is_kto or not _is_number(value)):
            raise record_error(
                record_id,
                "its answer is marked as one that a model should not give; leave the "
                'record out (`on_error="skip"`).',
                f"{key}={value!r}",
            )
    for key in _WEIGHTS:
        if _says_no(row.get(key)):
            raise record_error(
                record_id,
                "it is marked as not to be trained, but all records are trained: leave "
                f'it out (`on_error="skip"`), or take {key!r} away.',
                f"{key}={row[key]!r}",
            )
    if chat_column is None and not is_empty(row.get("chosen")):
        raise record_error(
            record_id,
            "preferences are not trained: make the answer under 'chosen' the last of "
            "the conversation; where it holds all of it, pass chat_column='chosen'.",
            f"keys {reprlib.repr(sorted(map(str, row)))}",
        )


def _says_no(value):
    """Whether a mark of a record is false or 0, also as CSV has it."""
    if isinstance(value, str):
        value = value.strip().lower()
        return value == "false" or _is_number(value) and float(value) == 0
    return isinstance(value, (int, float, np.number, np.bool_)) and value == 0


def _is_number(value):
    if isinstance(value, str):
        return re.fullmatch(r"\s*\d+(\.\d*)?\s*", value) is not None
    return not isinstance(value, (bool, np.bool_))


def _shape(record_id, row):
    found = [
        name
        for name, keys in _KEYS.items()
        if all(row.get(k) is not None for k in keys)
    ]
    if len(found) == 1:
        return found[0]
    keys = reprlib.repr(sorted(map(str, row)))
    if found:
        message = (
            f"the keys of {len(found)} conversations are there, {found}: name the one "
            "to read with `chat_column`, or take the others away."
        )
        raise record_error(record_id, message, keys)
    names = [" and ".join(map(repr, keys)) for keys in _KEYS.values()]
    raise record_error(
        record_id,
        f"a conversation must be under one of these keys: {'; '.join(names)}; or under "
        "`chat_column`. `load_vqa` reads questions and answers, `load_captions` "
        "captions.",
        f"keys {keys}",
    )


def _holds_images(turns):
    """Whether turns hold images themselves, in parts or as `<img>path</img>`."""
    is_inline = any("</img>" in text for _, text in turns.texts)
    return is_inline or any(not isinstance(image, Index) for image in turns.images)


def _add_system_key(turns, record_id, row):
    texts = {row[key] for key in SYSTEM_KEYS if isinstance(row.get(key), str)}
    texts = {text for text in texts if text.strip()} | {turns.system} - {None}
    if len(texts) > 1:
        message = "there must be one system's text."
        raise record_error(record_id, message, reprlib.repr(sorted(texts)))
    wrong = [k for k in SYSTEM_KEYS if not isinstance(row.get(k), (str, type(None)))]
    if wrong:
        message = f"the key {wrong[0]!r} must hold a text."
        raise record_error(record_id, message, reprlib.repr(row[wrong[0]]))
    turns.system = texts.pop() if texts else None


# One reader for each shape: `(record_id, row, shape) -> Turns`.


def _listed(record_id, row, key):
    return read_turns(record_id, row.get(key), key)


def _query(record_id, row, _):
    return _with_history(record_id, row, row["query"], row["response"])


def _alpaca(record_id, row, _):
    question = row["instruction"]
    if isinstance(question, str) and isinstance(row.get("input"), str):
        question = f"{question}\n{row['input']}" if row["input"].strip() else question
    return _with_history(record_id, row, question, row["output"])


def _with_history(record_id, row, question, answer):
    history = [] if row.get("history") is None else row["history"]
    if not isinstance(history, (list, tuple)):
        history = [history]  # which is no pair
    pairs = [*history, (question, answer)]
    turns = Turns()
    for number, pair in enumerate(pairs):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            message = "'history' must hold pairs of a question and its answer."
            raise record_error(record_id, message, reprlib.repr(pair))
        add_text(turns, record_id, number, "user", pair[0])
        add_text(turns, record_id, number, "assistant", pair[1])
    return turns


def _completion(record_id, row, _):
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) != isinstance(completion, str):
        message = "'prompt' and 'completion' must both be texts, or both messages."
        raise record_error(record_id, message, reprlib.repr((prompt, completion)))
    if isinstance(prompt, str):
        return _with_history(record_id, {}, prompt, completion)
    turns = read_turns(record_id, prompt, "prompt")
    if any(speaker == "assistant" for speaker, _ in turns.texts):
        message = (
            "'prompt' has answers of the assistant, which would be trained like the "
            "completion: put them into the question, or use 'messages' to train them."
        )
        raise record_error(record_id, message, reprlib.repr(prompt))
    answers = read_turns(record_id, completion, "completion")
    turns.texts += answers.texts
    turns.images += answers.images
    return turns


_KEYS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "conversations": ("conversations",),
    "conversation": ("conversation",),
    "texts": ("texts",),
    "query": ("query", "response"),
    "alpaca": ("instruction", "output"),
    "completion": ("prompt", "completion"),
}
_BESIDE = {"query": ("history",), "alpaca": ("history", "input")}
_READERS: dict[str, Callable] = {
    "query": _query,
    "alpaca": _alpaca,
    "completion": _completion,
}
