"""Greedy decoding of groups of prompts, with the same answers for every batch size."""

import contextlib
import functools
import itertools
from collections.abc import Iterable, Iterator

import keras
import numpy as np

from keras_betakd.evaluation.answer_text import without_marks
from keras_betakd.models.answer_function import (
    compiles_shapes,
    decoded_length,
    greedy_function,
)
from keras_betakd.models.chat_generation import generated
from keras_betakd.models.uncached_decoding import uncached_decoder
from keras_betakd.preprocessing.prompts import (
    Prompt,
    by_length,
    grouped,
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

    The prompts of a few batches are collected and sorted by their lengths, because the
    longer prompts of a group hold up the others: keras-hub decodes from the end of the
    shortest. Where only prompts of one length are decoded together (see
    `generate_answers`), they are collected until there are enough of one length. Thus
    the groups come in another order than the prompts. While the iterator is open the
    model is set to greedy decoding; then it is restored.

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

    family = format_of(model.preprocessor)
    prompts = iter(prompts)
    first = list(itertools.islice(prompts, 1))
    size = batch_size or sum(prompt.batch_size for prompt in first)
    prompts = itertools.chain(first, prompts)
    if not family.bidirectional_prompt:
        prompts = by_length(prompts, size)
    with _decoder(model, family, max_new_tokens) as decode:
        for group, lacking in grouped(prompts, size):
            lacking = lacking if compiles_shapes() else 0
            length = max_length or _total_length(group, max_new_tokens)
            texts = decode(stacked_inputs(group, lacking), length)
            answers = map(without_marks, texts[: len(group)])
            yield list(zip(group, answers, strict=True))


def _total_length(group, max_new_tokens):
    """The length to decode `group` in."""
    limit = group[0].length + group[0].room
    if max_new_tokens is None:
        return limit
    needed = max(prompt.length for prompt in group) + max_new_tokens
    return decoded_length(needed, limit)


@contextlib.contextmanager
def _decoder(model, family, max_new_tokens):
    """Yields a function of inputs and a length, which returns greedy answers."""
    if not family.decodes_cached:
        yield uncached_decoder(model, max_new_tokens)
        return
    with greedy_function(model).in_place(max_new_tokens) as function:
        model.generate_function = _answers_alone(function, max_new_tokens)
        yield functools.partial(generated, model)


def _answers_alone(function, max_new_tokens):
    """Wraps `function` to mask out the prompt and cut answers at `max_new_tokens`.

    `strip_prompt` of keras-hub's `generate` masks out the prompt as well, but not every
    family has it. The images that some families return are left out, and the tokens are
    NumPy arrays: keras-hub would take all of it to TensorFlow, to make texts of it.
    """

    def generate(inputs, stop_token_ids=None):
        role = "" if "padding_mask" in inputs else "decoder_"
        tokens, mask = f"{role}token_ids", f"{role}padding_mask"
        prompt = keras.ops.convert_to_numpy(inputs[mask]).astype(bool)
        outputs = function(inputs, stop_token_ids=stop_token_ids)
        found = {
            key: keras.ops.convert_to_numpy(outputs[key]) for key in (tokens, mask)
        }
        found[mask] = found[mask].astype(bool) & ~prompt
        if max_new_tokens is not None:
            end = prompt.sum(axis=-1, keepdims=True) + max_new_tokens
            found[mask] &= np.arange(prompt.shape[-1]) < end
        return found

    return generate
