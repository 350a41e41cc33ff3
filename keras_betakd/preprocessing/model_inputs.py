"""Turns neutral records into what one model's own preprocessor takes.

A record is neutral: its pictures have any size, and a picture's place in the prompt is
marked `<image>`. Each family wants its own mark, its own picture size and its own
container (`keras_betakd.preprocessing.image_formats`).
"""

from keras_betakd.preprocessing.image_formats import format_of
from keras_betakd.preprocessing.image_inputs import expect_no_mark_in, images_by_record
from keras_betakd.preprocessing.records import as_turns, record_ids


def model_inputs(preprocessor, records):
    """The records in the form of a model's family.

    Args:
        preprocessor: a keras-hub preprocessor of a `CausalLM` or `Seq2SeqLM`.
        records: dict of `"prompts"` (B strings, or for a conversation lists of
            strings), optional `"responses"` (the same), optional `"images"` (a
            (B, H, W, 3) array, or for each record a picture, a list of pictures, or
            `None`) and optional `"ids"`, which errors then name.

    Returns:
        Dict with lists of strings and, for a model that sees, its pictures; for most
        families `"images"` as one float32 array: (B, N, H, W, 3) for those with
        several pictures a record, where missing ones are zero and unmarked,
        (B, H, W, 3) for those with one.

    Raises:
        ValueError: a conversation for a model that takes one prompt and one response;
            pictures for a model that takes none, fewer or more pictures than marks,
            more pictures than the model takes; a picture's mark in a response. The
            record is named.
    """
    family = format_of(preprocessor)
    ids = record_ids(records, len(records["prompts"]))
    prompts = _texts(family, records["prompts"], ids)
    images = images_by_record(records.get("images"), len(prompts), ids)
    result = family.prepared(prompts, images, ids)
    if "responses" in records:
        responses = _texts(family, records["responses"], ids)
        if getattr(preprocessor, "image_converter", None) is not None and family.mark:
            expect_no_mark_in(responses, family.mark, ids)
        result["responses"] = responses
    return result


def _texts(family, values, ids):
    """Prompts or responses as strings, or for a conversation as lists of strings."""
    turns = [as_turns(value) for value in values]
    if family.takes_turns:
        return turns
    for found, name in zip(turns, ids, strict=False):
        if len(found) != 1:
            raise ValueError(
                f"Record {name} is a conversation of {len(found)} turns, but this "
                "model's preprocessor takes one prompt and one response. Write its "
                "turns into one prompt, in the model's own template."
            )
    return [text for (text,) in turns]


def training_inputs(preprocessor, inputs, sequence_length=None):
    """`(x, y, sample_weight)` of `model_inputs`, y shifted by one.

    In every family the response and its end mark are weighted, and nothing else.
    """
    return format_of(preprocessor).training(inputs, sequence_length)


def generation_inputs(preprocessor, inputs):
    """What the model's `generate` takes, of `model_inputs`."""
    return format_of(preprocessor).generation(inputs)
