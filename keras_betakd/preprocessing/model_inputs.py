"""Converts raw records to what a model's own keras-hub preprocessor takes.

Images of raw records have any size and are marked `<image>` in the prompt. Each family
has its own mark, image size and container (`keras_betakd.preprocessing.image_formats`).
"""

from keras_betakd.preprocessing.image_formats import format_of
from keras_betakd.preprocessing.record_checks import checked_records
from keras_betakd.preprocessing.special_tokens import expect_no_special_tokens


def model_inputs(preprocessor, records):
    """Converts raw records to the form of a model's family.

    Args:
        preprocessor: a keras-hub preprocessor of a `CausalLM` or `Seq2SeqLM`.
        records: dict of `"prompts"` (B strings, or for a conversation lists of
            strings), optional `"responses"` (the same), optional `"images"` (an array
            (B, H, W, 3), or for each record whatever `keras_betakd.data.load_image`
            reads, a list of that, or `None`) and optional `"ids"`, which are named in
            errors.

    Returns:
        Dict of lists of strings and, for a model that takes images, its images. For
        most families these are one float32 array `"images"`: (B, N, H, W, 3) for
        families with up to N images per record, where missing ones are zero and have no
        mark, (B, H, W, 3) for those with one.

    Raises:
        ValueError: a key that has no meaning; an id, prompt or response that is no text
            or is empty; an image that cannot be read; a conversation for a model that
            takes one prompt and one response; images for a model that takes none; fewer
            or more images than marks; more images than the model takes; a literal image
            token of the model in a text, or a start, end or padding token in a
            response. The message names the record.
        FileNotFoundError: there is no file at the path of an image.

    Example:

    ```python
    inputs = model_inputs(
        model.preprocessor,
        {"prompts": ["<image>\\nwhat color is it?"], "images": [image]},
    )
    ```
    """
    family = format_of(preprocessor)
    records = checked_records(records)
    names = records.names
    prompts = _texts(family, records["prompts"], names)
    result = family.prepared(prompts, records["images"], names)
    if "responses" in records:
        result["responses"] = _texts(family, records["responses"], names)
    texts = result["prompts"], result.get("responses")
    expect_no_special_tokens(family, *texts, names)
    return result


def _texts(family, conversations, names):
    """Lists of turns as they are, or as strings for a family that takes one turn."""
    if family.takes_turns:
        return conversations
    for turns, name in zip(conversations, names, strict=True):
        if len(turns) != 1:
            raise ValueError(
                f"Record {name} is a conversation of {len(turns)} turns, but this "
                "model's preprocessor takes one prompt and one response. Write its "
                "turns into one prompt, in the model's own template."
            )
    return [text for (text,) in conversations]


def training_inputs(preprocessor, inputs, sequence_length=None):
    """`(x, y, sample_weight)` of records from `model_inputs`, y shifted by one.

    In every family the response and its end mark have weight, and nothing else.
    """
    return format_of(preprocessor).training(inputs, sequence_length)


def generation_inputs(preprocessor, inputs):
    """The argument of the model's `generate`, from `model_inputs`."""
    return format_of(preprocessor).generation(inputs)
