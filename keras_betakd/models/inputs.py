"""Turns neutral records into what one model's own preprocessor takes.

A record is neutral: its pictures have any size, and a picture's place in the prompt is
marked `<image>`. Each family wants its own mark, its own picture size and its own
container (`keras_betakd.models.formats`).
"""

from keras_betakd.models.formats import format_of
from keras_betakd.models.pictures import images_by_record


def model_inputs(preprocessor, records):
    """The records in the form of a model's family.

    Args:
        preprocessor: a keras-hub preprocessor of a `CausalLM` or `Seq2SeqLM`.
        records: dict of `"prompts"` (B strings), optional `"responses"` (B
            strings), optional `"images"` (a (B, H, W, 3) array, or for each record
            a picture, a list of pictures, or `None`) and optional `"ids"`, which
            errors then name.

    Returns:
        Dict with lists of strings and, for a model that sees, its pictures; for most
        families `"images"` as one float32 array: (B, N, H, W, 3) for those with
        several pictures a record, where missing ones are zero and unmarked,
        (B, H, W, 3) for those with one.

    Raises:
        ValueError: pictures for a model that takes none, fewer or more pictures
            than marks, more pictures than the model takes. The record is named.
    """
    prompts = [as_text(p) for p in records["prompts"]]
    ids = record_ids(records, len(prompts))
    images = images_by_record(records.get("images"), len(prompts), ids)
    result = format_of(preprocessor).prepared(prompts, images, ids)
    if "responses" in records:
        result["responses"] = [as_text(r) for r in records["responses"]]
    return result


def training_inputs(preprocessor, inputs, sequence_length=None):
    """`(x, y, sample_weight)` of `model_inputs`, y shifted by one.

    In every family the response and its end mark are weighted, and nothing else.
    """
    return format_of(preprocessor).training(inputs, sequence_length)


def generation_inputs(preprocessor, inputs):
    """What the model's `generate` takes, of `model_inputs`."""
    return format_of(preprocessor).generation(inputs)


def as_text(value):
    """A Python string out of a string, bytes, or a scalar array of either."""
    value = value.item() if hasattr(value, "item") else value
    if hasattr(value, "numpy"):
        value = value.numpy()
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def record_ids(records, size):
    """How to name each record in a message: its id, or its place in the batch."""
    if records.get("ids") is None:
        return [f"number {i} of the batch" for i in range(size)]
    return [f"'{as_text(i)}'" for i in records["ids"]]
