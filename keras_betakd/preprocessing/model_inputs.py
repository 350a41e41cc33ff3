"""Converts raw records to what a model's own keras-hub preprocessor takes.

Images of raw records have any size and are marked `<image>` in the prompt. Each family
has its own mark, image size and container (`keras_betakd.preprocessing.image_formats`).
"""

from keras_betakd.preprocessing.image_formats import format_of
from keras_betakd.preprocessing.image_inputs import expect_no_mark_in, images_by_record
from keras_betakd.preprocessing.records import as_turns, record_ids


def model_inputs(preprocessor, records):
    """Converts raw records to the form of a model's family.

    Args:
        preprocessor: a keras-hub preprocessor of a `CausalLM` or `Seq2SeqLM`.
        records: dict of `"prompts"` (B strings, or for a conversation lists of
            strings), optional `"responses"` (the same), optional `"images"` (a
            (B, H, W, 3) array with values from 0 to 255, or for each record an image, a
            list of images, or `None`) and optional `"ids"`, which are named in errors.

    Returns:
        Dict of lists of strings and, for a model that takes images, its images. For
        most families these are one float32 array `"images"`: (B, N, H, W, 3) for
        families with up to N images per record, where missing ones are zero and have no
        mark, (B, H, W, 3) for those with one.

    Raises:
        ValueError: a conversation for a model that takes one prompt and one response;
            images for a model that takes none; fewer or more images than marks; more
            images than the model takes; an image mark in a response. The message names
            the record.

    Example:

    ```python
    inputs = model_inputs(
        model.preprocessor,
        {"prompts": ["<image>\\nwhat color is it?"], "images": [image]},
    )
    ```
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
    """`(x, y, sample_weight)` of records from `model_inputs`, y shifted by one.

    In every family the response and its end mark have weight, and nothing else.
    """
    return format_of(preprocessor).training(inputs, sequence_length)


def generation_inputs(preprocessor, inputs):
    """The argument of the model's `generate`, from `model_inputs`."""
    return format_of(preprocessor).generation(inputs)
