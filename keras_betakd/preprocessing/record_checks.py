"""Checks raw records once, where they enter: keys, ids, texts, images.

`model_inputs` and `DistillationPreprocessor` begin with `checked_records`, so all of
`fit`, `evaluate`, `predict`, `generate_answers` and `cache_teacher` do.
"""

import difflib
from collections.abc import Mapping

from keras_betakd.data.images import is_array
from keras_betakd.data.pixels import as_array
from keras_betakd.preprocessing.record_images import images_by_record
from keras_betakd.preprocessing.records import (
    PLACEHOLDER,
    by_position,
    id_texts,
    record_ids,
    tokens_by_record,
    turns_by_record,
)

RECORD_KEYS = (
    *("prompts", "responses", "response_tokens", "images", "ids", "system"),
    *("sample_weight", "task_weight"),
)

# What other libraries call the same, where it is not spelt alike.
_OTHER_NAMES = {
    "prompts": ("question", "instruction", "query", "input", "text", "conversation"),
    "responses": ("answer", "completion", "output", "label", "target", "caption"),
    "images": ("picture", "img", "pixel", "pixel_value", "image_path", "photo"),
    "ids": ("id", "name", "uid", "question_id"),
    "sample_weight": ("weight", "sample_weight"),
    "task_weight": ("ce_weight", "label_weight", "task_weight"),
    "system": ("system_prompt", "system_message"),
}


class CheckedRecords(dict):
    """Raw records that have been checked.

    `"prompts"` and `"responses"` are lists of turns, `"images"` lists of uint8 arrays,
    `"ids"` strings or `None`, `"system"` strings with `None` for records without;
    the other keys may be missing.

    Args:
        records: the dict.
        names: strings that name the records in errors.
    """

    def __init__(self, records, names):
        super().__init__(records)
        self.names = names


def checked_records(records):
    """Checks raw records, and brings their texts, images and ids into one form.

    Args:
        records: dict of raw records, as for `model_inputs`. Those that have been
            checked are returned as they are.

    Returns:
        A `CheckedRecords`.

    Raises:
        ValueError: a key that has no meaning, entries of different number, an id or a
            text that is none (`None`, NaN), an empty response, an empty prompt without
            image, or an image that cannot be read. The message names the record.
        FileNotFoundError: there is no file at the path of an image.
    """
    if isinstance(records, CheckedRecords):
        return records
    if not isinstance(records, Mapping):
        raise ValueError(
            "Raw records must be a dict of lists or arrays, with the keys "
            f"{list(RECORD_KEYS)}. Received: {type(records).__name__}"
        )
    expect_known_keys(records, RECORD_KEYS, "Raw records")
    records = by_position(records)
    if records.get("prompts") is None:
        raise ValueError(f'Raw records need "prompts". Received: {sorted(records)}')
    entries = {
        key: _entries(key, values)
        for key, values in records.items()
        if key != "images" and values is not None
    }
    size = len(entries["prompts"])
    if size == 0:
        raise ValueError('There are no records. Received: no entry in "prompts"')
    for key, values in entries.items():
        if len(values) != size:
            what = {"responses": "response", "ids": "id"}.get(key, key)
            what = "entry, of token ids or `None`" if key == "response_tokens" else what
            what = "system prompt (`None` for none)" if key == "system" else what
            raise ValueError(
                f"Every prompt needs one {what}. Received: {size} prompts, "
                f'{len(values)} entries of "{key}"'
            )
    names = record_ids(records, size)
    checked = {"ids": id_texts(entries["ids"]) if "ids" in entries else None}
    checked["prompts"] = turns_by_record(entries["prompts"], names, "prompt")
    if entries.get("response_tokens") is not None:
        tokens = tokens_by_record(entries["response_tokens"], names)
        checked["response_tokens"] = tokens
        given = entries.get("responses", [None] * size)
        entries["responses"] = _with_placeholders(given, tokens, checked["prompts"])
    if "responses" in entries:
        checked["responses"] = turns_by_record(entries["responses"], names, "response")
        _expect_full(checked["responses"], names)
    if "system" in entries:
        checked["system"] = _system_prompts(entries["system"], names)
    for key in ("sample_weight", "task_weight"):
        if key in entries:
            checked[key] = entries[key]
    checked["images"] = images_by_record(records.get("images"), size, names)
    expect_prompts(checked["prompts"], checked["images"], names)
    return CheckedRecords(checked, names)


def expect_known_keys(keys, known, what):
    """Raises a `ValueError` for a key that is not known, and names the nearest one.

    Args:
        keys: the keys of a dict that a user made.
        known: the keys that have a meaning.
        what: what the dicts are, in the plural, for the message.

    Example:

    >>> expect_known_keys({"prompts": []}, ("prompts", "images"), "Raw records")
    """
    for key in keys:
        if str(key).lower() in ("video", "videos"):
            raise ValueError(
                f"{what} have a key {key!r}, but no model here reads videos. Leave it "
                "out, or give frames of it as images."
            )
        if key not in known:
            near = _nearest(str(key), known)
            advice = f"; did you mean {near!r}?" if near else "."
            raise ValueError(
                f"{what} have no key {key!r}{advice} It would have no effect: rename "
                f"it, or leave it out. Known keys: {list(known)}"
            )


def _nearest(key, known):
    """The known key that a user most likely meant; `None` if none is near."""
    word = key.lower().replace("-", "_").removesuffix("s")
    for name, others in _OTHER_NAMES.items():
        if name in known and word in others:
            return name
    return next(iter(difflib.get_close_matches(key.lower(), known, 1, 0.5)), None)


def _with_placeholders(responses, tokens, prompts):
    """The responses, with a word in place of each that is given by its tokens."""
    found = []
    for text, ids, turns in zip(responses, tokens, prompts, strict=True):
        is_list = isinstance(text, (list, tuple)) or getattr(text, "ndim", 0) == 1
        is_text = text is None or isinstance(text, (str, bytes))
        if ids is not None and (is_list or is_text):
            earlier = list(text) if is_list else []
            text = [*earlier[: len(turns) - 1], PLACEHOLDER]
        found.append(text)
    return found


def _entries(key, values):
    """The entries of a column, one for each record; a sequence."""
    if isinstance(values, (str, bytes)) or not hasattr(values, "__len__"):
        raise ValueError(
            f'"{key}" must be a list or an array with one entry for each record. '
            f"Received: {type(values).__name__}"
        )
    return as_array(values) if is_array(values) else values


def _system_prompts(values, names):
    """The system prompt of each record, `None` for those without."""
    found = []
    for value, name in zip(values, names, strict=True):
        if value is not None:
            (value,) = turns_by_record([_one_text(value)], [name], "system prompt")[0]
            if _is_blank(value):
                raise ValueError(
                    f"Record {name}: its system prompt is empty. Give `None` for a "
                    f"record without one. Received: {value!r}"
                )
        found.append(value)
    return found


def _one_text(value):
    """A system prompt, which has no turns: a list of texts becomes no text."""
    return [value] if isinstance(value, (list, tuple)) else value


def _is_blank(text):
    """Whether a text has nothing but spaces and characters that cannot be seen."""
    return not any(sign.isprintable() and not sign.isspace() for sign in text)


def _expect_full(responses, names):
    for turns, name in zip(responses, names, strict=True):
        for text in turns:
            if _is_blank(text):
                raise ValueError(
                    f"Record {name}: its response is empty, so that only the end mark "
                    "would be trained. Give an answer, or leave the record out. "
                    f"Received: {text!r}"
                )


def expect_prompts(prompts, images, names):
    """Raises a `ValueError` for an empty prompt, but for a first one with an image.

    A caption needs no question. Without image there would be nothing to answer.
    """
    for turns, found, name in zip(prompts, images, names, strict=True):
        for number, text in enumerate(turns):
            if (number or not found) and _is_blank(text):
                raise ValueError(
                    f"Record {name}: its prompt is empty and has no image, so that "
                    "nothing would be answered. Give a prompt, or leave the record "
                    f"out. Received: {text!r}"
                )
