"""Prompts without answers: one by one, in groups to decode together, and as inputs."""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from keras_betakd.preprocessing.image_inputs import expect_no_mark_without_image
from keras_betakd.preprocessing.model_inputs import model_inputs, without_last_answers
from keras_betakd.preprocessing.record_checks import CheckedRecords

# The number of batches whose prompts, with their images, are held in memory until
# there is a full group of one kind. Beyond it, groups are padded with repetitions.
_MOST_WAITING = 64

# The most batches whose prompts are sorted by length. They hold their images, so there
# are no more prompts than above unless one batch has more.
_SORTED_BATCHES = 4

# Lengths are rounded up to a multiple of it at least, so that few shapes are compiled.
_LENGTH_STEP = 32


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt as model inputs, images included.

    Args:
        id: What the record is found by.
        inputs: The prompt's row of the inputs that `prompt_inputs` returned.
        length: Tokens of the prompt.
        room: Tokens that are left for its answer.
        kind: Only prompts of one kind are decoded together.
        batch_size: The size of the batch that it was in.
    """

    id: Any
    inputs: dict[str, Any]
    length: int
    room: int
    kind: Any
    batch_size: int


def prompt_inputs(family, records, template):
    """`model_inputs` of records whose last answers are to be generated.

    Args:
        family: the `TextFormat` of the model.
        records: the `CheckedRecords`. Without template, answers are left out.
        template: the template of the prompts, as for `model_inputs`.

    Returns:
        As `model_inputs`. Where the family takes turns, `"responses"` are those to all
        turns but the last.
    """
    keys = ("prompts", "images", "ids", "system")
    keys += () if template is None else ("responses",)
    shown = {key: value for key, value in records.items() if key in keys}
    shown = without_last_answers(CheckedRecords(shown, records.names))
    inputs = model_inputs(family.preprocessor, shown, template)
    if family.takes_turns and "responses" in records:
        pairs = zip(records["prompts"], records["responses"], strict=True)
        inputs["responses"] = [found[: len(turns) - 1] for turns, found in pairs]
    if getattr(family.preprocessor, "image_converter", None) is None:
        expect_no_mark_without_image(inputs["prompts"], records.names)
    return inputs


def as_prompts(family, inputs, lengths, limit, keys, packed=None) -> Iterator[Prompt]:
    """Yields the `Prompt`s of a batch.

    Args:
        family: The `TextFormat` of the model.
        inputs: What `prompt_inputs` or `model_inputs` returned.
        lengths: Tokens of each prompt.
        limit: Tokens of prompt and answer together.
        keys: What each record is found by.
        packed: What `packed_with_lengths` of the family made of the inputs, if it did.
            Nothing else is then kept of them, but for the prompts.
    """
    for i, (key, length) in enumerate(zip(keys, lengths, strict=True)):
        row = {name: value[i] for name, value in inputs.items()}
        if packed is not None:
            row = {"packed": {name: value[i] for name, value in packed.items()}}
            row |= {k: v[i] for k, v in inputs.items() if k in ("prompts", "chats")}
        kind = length if family.bidirectional_prompt else None
        yield Prompt(key, row, length, limit - length, kind, len(keys))


def rounded_length(needed: int, limit: int) -> int:
    """A length to decode in, rounded up so that few shapes are compiled.

    It is at most an eighth longer, or 31 tokens: what a step takes grows with the
    length, in families with a sliding window by its square.

    Example:

    >>> rounded_length(70, 512), rounded_length(70, 80), rounded_length(1030, 4096)
    (96, 80, 1152)
    """
    step = max(_LENGTH_STEP, 2 ** (needed.bit_length() - 4))
    return min(limit, -(-needed // step) * step)


def by_length(prompts: Iterable[Prompt], batch_size: int) -> Iterator[Prompt]:
    """Yields prompts sorted by length, the longest of every few batches first.

    So the prompts of a group are about as long as each other, and few of them are read
    and held at once.

    Args:
        prompts: The prompts; read as needed.
        batch_size: Prompts of a group. One alone has none to wait for.
    """
    prompts = iter(prompts)
    count = 1
    if batch_size > 1:
        count = batch_size * max(1, min(_SORTED_BATCHES, _MOST_WAITING // batch_size))
    while some := list(itertools.islice(prompts, count)):
        yield from sorted(some, key=lambda prompt: -prompt.length)


def grouped(
    prompts: Iterable[Prompt], batch_size: int | None = None
) -> Iterator[tuple[list[Prompt], int]]:
    """Yields prompts to decode together, and how many lack to a full batch.

    Args:
        prompts: The prompts; read as needed.
        batch_size: Prompts of a group; as many as the first one's batch has if `None`.
    """
    size = batch_size or 0
    waiting = collections.defaultdict(list)
    for prompt in prompts:
        size = size or prompt.batch_size
        waiting[prompt.kind].append(prompt)
        fullest = max(waiting.values(), key=len)
        count = sum(map(len, waiting.values()))
        if len(fullest) == size or count == _MOST_WAITING * size:
            yield waiting.pop(fullest[0].kind), size - len(fullest)
    for group in waiting.values():
        yield group, size - len(group)


def stacked_inputs(group: list[Prompt], lacking: int = 0) -> dict:
    """The inputs of a group, as `model_inputs` returns those of a batch.

    Args:
        group: The prompts.
        lacking: How often the last one is repeated, so that JAX need not compile
            another shape.
    """
    group = group + group[-1:] * lacking
    inputs = [prompt.inputs for prompt in group]
    return {key: _stacked([row[key] for row in inputs]) for key in inputs[0]}


def _stacked(rows):
    """Rows of inputs together: arrays, dicts of arrays, or a list of anything else."""
    if isinstance(rows[0], dict):
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    return np.stack(rows) if hasattr(rows[0], "shape") else rows
