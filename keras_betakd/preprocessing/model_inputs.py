"""Converts raw records to what a model's own keras-hub preprocessor takes.

Images of raw records have any size and are marked `<image>` in the prompt. Each family
has its own mark, image size and container (`keras_betakd.preprocessing.image_formats`).
"""

from keras_betakd.data.images import IMAGE_MARK
from keras_betakd.preprocessing.chat_template import ChatTemplate
from keras_betakd.preprocessing.image_formats import format_of
from keras_betakd.preprocessing.prompt_templates import (
    chats_of,
    resolved_template,
    written_by,
)
from keras_betakd.preprocessing.record_checks import CheckedRecords, checked_records
from keras_betakd.preprocessing.special_tokens import expect_no_special_tokens


def model_inputs(preprocessor, records, prompt_template=None, trained_turns="all"):
    """Converts raw records to the form of a model's family.

    Args:
        preprocessor: a keras-hub preprocessor of a `CausalLM` or `Seq2SeqLM`.
        records: dict of `"prompts"` (B strings, or for a conversation lists of
            strings), optional `"responses"` (the same), optional `"images"` (an array
            (B, H, W, 3), or for each record whatever `keras_betakd.data.load_image`
            reads, a list of that, or `None`), optional `"system"` (system prompts,
            `None` for records without) and optional `"ids"`, which are named in errors.
        prompt_template: in what the records are written; as for
            `DistillationPreprocessor`, for one model. Defaults to `None`: as they are.
        trained_turns: `"all"` answers of a conversation have weight, or the `"last"`.

    Returns:
        Dict of lists of strings and, for a model that takes images, its images. For
        most families these are one float32 array `"images"`: (B, N, H, W, 3) for
        families with up to N images per record, where missing ones are zero and have no
        mark, (B, H, W, 3) for those with one. With a chat template, `"chats"` are the
        records as it writes them.

    Raises:
        ValueError: a key that has no meaning; an id, prompt or response that is no text
            or is empty; an image that cannot be read; a conversation for a model that
            takes one prompt and one response; images for a model that takes none; fewer
            or more images than marks; more images than the model takes; a literal image
            token of the model in a text, or a start, end or padding token in a
            response, or in any text of a chat template; a mark of the template in a
            text; a function as template that begins with the start token; a system
            prompt without a template that has a place for it. The message names the
            record.
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
    template = resolved_template(prompt_template, family)
    if isinstance(template, ChatTemplate):
        return _written(template, family, records, trained_turns)
    names = records.names
    if template is not None:
        found = written_by(template, records)
        _expect_no_start(family, found["prompts"], names)
        records = CheckedRecords({"images": records["images"], **found}, names)
    _expect_no_system(records)
    prompts = _texts(family, records["prompts"], names)
    result = family.prepared(prompts, records["images"], names)
    if "responses" in records:
        result["responses"] = _texts(family, records["responses"], names)
    texts = result["prompts"], result.get("responses")
    expect_no_special_tokens(family, *texts, names)
    return result


def _written(template, family, records, trained_turns):
    """`model_inputs` of records in a chat template."""
    names = records.names
    chats = chats_of(template, family, records)
    takes_images = bool(family.marks_of_images)
    turns = [
        [text.replace(IMAGE_MARK, "\n") if takes_images else text for text in texts]
        for texts in records["prompts"]
    ]
    turns = [
        texts + ([] if system is None else [system])
        for texts, system in zip(
            turns, records.get("system") or [None] * len(turns), strict=True
        )
    ]
    texts = turns, records.get("responses")
    expect_no_special_tokens(family, *texts, names, in_template=True)
    if trained_turns == "last":
        chats = [chat.trained_last() for chat in chats]
    prompts = [family.without_start(chat) for chat in chats]
    result = family.prepared(prompts, records["images"], names)
    result["chats"] = [family.marked(chat) for chat in chats]
    if all(chat.response for chat in chats):
        result["responses"] = [chat.response for chat in chats]
    return result


def without_last_answers(records):
    """`CheckedRecords` whose last answers are to be generated.

    Those to the earlier turns of a conversation stay.
    """
    if "responses" not in records:
        return records
    pairs = zip(records["prompts"], records["responses"], strict=True)
    responses = [answers[: len(turns) - 1] for turns, answers in pairs]
    return CheckedRecords({**records, "responses": responses}, records.names)


def _expect_no_start(family, prompts, names):
    """Raises for a user's function that writes what the preprocessor puts itself."""
    start = getattr(family.preprocessor.tokenizer, "start_token", None)
    for turns, name in zip(prompts, names, strict=True):
        if start and turns[0].startswith(start):
            raise ValueError(
                f"The function given as `prompt_template` begins record {name} with "
                f"{start!r}, which the preprocessor puts there itself: the model would "
                "read it twice. Leave it out (`text.removeprefix(...)`). Received: "
                f"prompt={turns[0]!r:.80}"
            )


def _expect_no_system(records):
    for system, name in zip(records.get("system") or (), records.names, strict=False):
        if system is not None:
            raise ValueError(
                f"Record {name} has a system prompt, but this model has no prompt "
                "template that would write it. Give a `prompt_template`, or write the "
                f"text into the prompt. Received: system={system!r}"
            )


def _texts(family, conversations, names):
    """Lists of turns as they are, or as strings for a family that takes one turn."""
    if family.takes_turns:
        return conversations
    for turns, name in zip(conversations, names, strict=True):
        if len(turns) != 1:
            raise ValueError(
                f"Record {name} is a conversation of {len(turns)} turns, but this "
                "model's preprocessor takes one prompt and one response. Give the "
                "model's `prompt_template`, or write its turns into one prompt."
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
