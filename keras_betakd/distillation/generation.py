"""Asks a student raw records: prompts with `<image>` marks, and images of any size."""

import contextlib

import keras
import numpy as np

from keras_betakd.models.chat_generation import generated, stop_tokens
from keras_betakd.models.uncached_decoding import token_decoder
from keras_betakd.preprocessing.image_formats import format_of
from keras_betakd.preprocessing.prompt_templates import resolved_template
from keras_betakd.preprocessing.prompts import prompt_inputs
from keras_betakd.preprocessing.record_checks import checked_records


def as_records(inputs):
    """What `generate` takes as a batch of raw records, checked.

    Args:
        inputs: a prompt, a sequence of prompts, or a dict of `"prompts"` and more, of
            one record or of several.

    Returns:
        `(records, is_single)`: a `CheckedRecords`, and whether it is one record that
        was not in a sequence.

    Raises:
        ValueError: as for `checked_records`.
    """
    records = inputs if isinstance(inputs, dict) else {"prompts": inputs}
    prompts = records.get("prompts")
    single = isinstance(prompts, (str, bytes)) or getattr(prompts, "shape", 1) == ()
    if single:
        records = {k: None if v is None else [v] for k, v in records.items()}
    return checked_records(records), single


def student_answers(
    view, records, prompt_template, max_length, stop_token_ids, strip_prompt
):
    """The answers of a keras-hub model to raw records: a list of strings.

    Args:
        view: the model's `CausalLMView`.
        records: the `CheckedRecords`.
        prompt_template: the template of the prompts, as for `model_inputs`.
        max_length, stop_token_ids, strip_prompt: as for the model's `generate`.
    """
    model = view.model
    family = format_of(model.preprocessor)
    template = resolved_template(prompt_template, family)
    inputs = prompt_inputs(family, records, template)
    _expect_room(family, inputs, records, max_length)
    count = sum(map(len, records["images"]))
    if count and not family.decodes_cached:
        return _uncached(model, inputs, max_length, stop_token_ids, strip_prompt)
    # Otherwise no answer repeats its prompt, and keras-hub's stripping fails.
    strip_prompt = strip_prompt and family.repeats_prompt
    # What is patched mixes up the images of a batch; one image has nothing to mix.
    context = _patched(view) if count > 1 else contextlib.nullcontext()
    with context:
        answers = generated(model, inputs, max_length, stop_token_ids, strip_prompt)
    if "chats" not in inputs:
        return answers
    # keras-hub leaves the mark in, where its tokenizer does not call it special.
    return [text.removesuffix(template.end.strip()) for text in answers]


def _expect_room(family, inputs, records, max_length):
    """keras-hub cuts longer prompts without a word."""
    preprocessor = family.preprocessor
    limits = {family.answer_length: max_length}
    start = max_length or getattr(preprocessor, family.answer_length)
    for attribute, lengths in family.prompt_lengths(inputs, start).items():
        limit = limits.get(attribute) or getattr(preprocessor, attribute)
        room = attribute == family.answer_length
        for name, length in zip(records.names, lengths, strict=True):
            if length + room > limit:
                raise ValueError(
                    f"Record {name}: its prompt has {length} tokens, those of its "
                    f"images included, which leaves no room in {limit}. Give a greater "
                    f"`max_length` or `student.preprocessor.{attribute}`, or shorten "
                    "the prompt."
                )


@contextlib.contextmanager
def _patched(view):
    """A context in which `generate` runs the view's patched layers."""
    model, compiled = view.model, view.model.generate_function
    if view.is_patched:
        model.generate_function = None
    try:
        with view.patched():
            yield
    finally:
        model.generate_function = compiled


def _uncached(model, inputs, max_length, stop_token_ids, strip_prompt):
    """Greedy answers of a family whose images keras-hub's `generate` misplaces."""
    from keras_hub.samplers import GreedySampler

    if type(model.sampler) is not GreedySampler:
        raise ValueError(
            f"keras-hub's `generate` misplaces the images of {type(model).__name__}; "
            "answers about images are decoded here instead, and greedily alone. Call "
            f'`student.compile(sampler="greedy")`. Received: sampler={model.sampler}'
        )
    preprocessor = model.preprocessor
    if isinstance(stop_token_ids, str):  # "auto"
        stop_token_ids = stop_tokens(preprocessor, inputs)
    length = max_length or preprocessor.sequence_length
    stop = [] if stop_token_ids is None else list(stop_token_ids)
    token_ids, start, end = token_decoder(model)(inputs, length, stop)
    places = np.arange(length)
    mask = places < end[:, None]
    if strip_prompt:
        mask &= places >= start[:, None]
    decoded = {"token_ids": token_ids, "padding_mask": mask}
    decoded = {k: keras.ops.convert_to_tensor(v) for k, v in decoded.items()}
    return list(preprocessor.generate_postprocess(decoded))
