"""Greedy decoding of groups of prompts, with the same answers for every batch size."""

import contextlib
import functools
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager

import keras
import numpy as np

from keras_betakd.evaluation.answer_text import without_marks
from keras_betakd.models.chat_generation import generated
from keras_betakd.models.uncached_decoding import uncached_decoder
from keras_betakd.preprocessing.prompts import (
    Prompt,
    grouped,
    rounded_length,
    stacked_inputs,
)


def answered_groups(
    model,
    prompts: Iterable[Prompt],
    batch_size: int | None = None,
    max_length: int | None = None,
    max_new_tokens: int | None = None,
) -> Iterator[list[tuple[Prompt, str]]]:
    """Generates answers to prompts and yields each group as soon as it is answered.

    Where only prompts of one length are decoded together (see `generate_answers`), they
    are collected until there are enough of one length, and the groups come in another
    order than the prompts. While the iterator is open the model is set to greedy
    decoding; then it is restored.

    Args:
        model: A keras-hub model with its preprocessor.
        prompts: The prompts that a `PromptReader` of that preprocessor yields; read as
            needed.
        batch_size: As for `generate_answers`.
        max_length: As for `generate_answers`.
        max_new_tokens: As for `generate_answers`, but the answer to a prompt that
            leaves less room than that ends with the room.

    Yields:
        The prompts of a group, each with its answer (see `without_marks`).

    Example:

    ```python
    reader = PromptReader(model.preprocessor)
    for group in answered_groups(model, reader.read(dataset)):
        save([(prompt.id, text) for prompt, text in group])
    ```
    """
    from keras_betakd.preprocessing.image_formats import format_of

    decode = functools.partial(_decoded, model)
    context: AbstractContextManager = _greedy(model, max_new_tokens)
    if not format_of(model.preprocessor).decodes_cached:
        decode = uncached_decoder(model, max_new_tokens)
        context = contextlib.nullcontext()
    with context:
        for group, lacking in grouped(prompts, batch_size):
            length = max_length or _total_length(group, max_new_tokens)
            texts = decode(stacked_inputs(group, lacking), length)
            answers = map(without_marks, texts[: len(group)])
            yield list(zip(group, answers, strict=True))


def _total_length(group, max_new_tokens):
    """The length to decode `group` in, rounded up so that few shapes are compiled."""
    limit = group[0].length + group[0].room
    if max_new_tokens is None:
        return limit
    needed = max(prompt.length for prompt in group) + max_new_tokens
    return rounded_length(needed, limit)


def _decoded(model, inputs, length):
    return generated(model, inputs, max_length=length)


@contextlib.contextmanager
def _greedy(model, max_new_tokens):
    """Within, `model.generate` is greedy and stops after `max_new_tokens`.

    Only two public attributes of the model are replaced, and restored afterwards: its
    sampler, and the compiled function that `make_generate_function` keeps.
    """
    from keras_hub.samplers import GreedySampler

    from keras_betakd.models.views import view_of

    sampler = getattr(model, "sampler", None)
    compiled = getattr(model, "generate_function", None)
    # The exact class: a subclass may do something else.
    is_greedy = type(sampler) is GreedySampler
    view = view_of(model)
    try:
        if not is_greedy or view.is_patched:
            model.sampler, model.generate_function = GreedySampler(), None
        function = model.make_generate_function()
        if is_greedy and not view.is_patched:
            compiled = function
        model.generate_function = _answers_alone(function, max_new_tokens)
        with view.patched():
            yield
    finally:
        model.sampler, model.generate_function = sampler, compiled


def _answers_alone(function, max_new_tokens):
    """Wraps `function` to mask out the prompt and cut answers at `max_new_tokens`.

    `strip_prompt` of keras-hub's `generate` masks out the prompt as well, but not every
    family has it.
    """

    def generate(inputs, stop_token_ids=None):
        name = "padding_mask" if "padding_mask" in inputs else "decoder_padding_mask"
        prompt = keras.ops.convert_to_numpy(inputs[name]).astype(bool)
        outputs = dict(function(inputs, stop_token_ids=stop_token_ids))
        mask = keras.ops.convert_to_numpy(outputs[name]).astype(bool) & ~prompt
        if max_new_tokens is not None:
            end = prompt.sum(axis=-1, keepdims=True) + max_new_tokens
            mask = mask & (np.arange(mask.shape[-1]) < end)
        outputs[name] = keras.ops.convert_to_tensor(mask)
        return outputs

    return generate
