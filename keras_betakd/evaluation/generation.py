"""Greedy answers of a keras-hub model, the same for every batch size."""

import collections
import contextlib
import dataclasses
import re
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

_END_MARK = re.compile(
    r"</s>|<eos>|<end_of_turn>|<turn\|>"
    r"|<\|(?:im_end|endoftext|end_of_text|eot_id|end|eot|return)\|>"
)
_OTHER_MARK = re.compile(
    r"<(?:s|bos|pad|unk|img|start_of_image|end_of_image|image_soft_token)>|\[/?IMG\]"
    r"|<\|[a-z_]+\|>"
)

_LENGTH_STEP = 64


def clean_answer(text: str) -> str:
    """The answer alone: cut at the first end mark, without special tokens.

    Args:
        text: What a model produced.

    Returns:
        The text up to `</s>`, `<eos>`, `<end_of_turn>`, `<|im_end|>` or the like,
        without the marks of padding, start and images and without outer spaces.

    Example:

    >>> clean_answer(" 2011<|im_end|>\\n<pad>")
    '2011'
    """
    return _OTHER_MARK.sub("", _END_MARK.split(text, maxsplit=1)[0]).strip()


def generate_answers(
    model,
    batches: Iterable[dict],
    batch_size: int | None = None,
    max_length: int | None = None,
    max_new_tokens: int | None = None,
    progress: bool = True,
) -> dict[str, str]:
    """Lets a keras-hub model answer every prompt, greedily.

    The decoding is greedy whatever sampler the model was compiled with (keras-hub's
    own default draws at random), and the model is left as it was. A model compiled
    with `sampler="greedy"` keeps its compiled function from call to call; any other
    compiles again at each.

    An answer does not depend on its batch. Two things would make it: `max_new_tokens`
    is counted from the end of each prompt, where keras-hub decodes a whole batch to
    one length; and a model whose prompt tokens see each other both ways (PaliGemma)
    only gets prompts of one length together, because keras-hub, while it decodes the
    shorter prompts of a batch, overwrites the rest of the longer ones in the cache
    with values that saw the past alone. A batch that is not full is filled up with
    repetitions, which are dropped, so that JAX need not compile another shape.

    Args:
        model: A `keras_hub.models.CausalLM` or `Seq2SeqLM` with its preprocessor.
        batches: Dicts of `"prompts"` and optional `"ids"` and `"images"`, as
            `ScienceQADataset` makes them, or one such dict. Without ids, they are
            "0", "1", and so on.
        batch_size: Prompts to generate for at once; by default, as many as the first
            batch has.
        max_length: Tokens of prompt and answer together, and the one length that all
            batches are decoded in. By default the preprocessor's `sequence_length`,
            or just what a batch needs, rounded up, if `max_new_tokens` is given.
        max_new_tokens: Tokens of an answer; by default whatever `max_length` leaves.
        progress: Whether to show a progress bar.

    Returns:
        The cleaned answers (see `clean_answer`) by id, in the order of the prompts.

    Raises:
        ValueError: A prompt leaves no room for its answer (keras-hub would cut it
            in silence); the pictures do not fit the marks or the model; an id
            occurs twice. The message names the record.
        TypeError: The model has no preprocessor or does not generate.

    Example:

    ```python
    answers = generate_answers(student, dataset, max_new_tokens=16)
    score_scienceqa(dataset.records, answers).accuracy
    ```
    """
    if not hasattr(model, "generate") or getattr(model, "preprocessor", None) is None:
        raise TypeError(
            "`model` must be a `keras_hub.models.CausalLM` with a preprocessor. "
            f"Received: {type(model).__name__}"
        )
    for name, value in (
        ("batch_size", batch_size),
        ("max_length", max_length),
        ("max_new_tokens", max_new_tokens),
    ):
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be positive. Received: {name}={value}")
    reader = _Reader(
        model.preprocessor,
        limit=max_length or model.preprocessor.sequence_length,
        room=max_new_tokens or 1,
    )
    answers: dict[str, str] = {}
    bar = keras.utils.Progbar(None, unit_name="batch") if progress else None
    answer, context = _answer, _greedy(model, max_new_tokens)
    if not reader.format.decodes_cached:
        answer, context = _recomputing(model, max_new_tokens), contextlib.nullcontext()
    with context:
        for count, group in enumerate(_groups(reader.rows(batches), batch_size), 1):
            length = max_length or _total_length(group, reader.limit, max_new_tokens)
            answers.update(answer(model, group, length))
            if bar:
                bar.update(count)
    if bar and answers:
        bar.update(count, finalize=True)
    return {name: answers[name] for name in reader.ids}


@dataclasses.dataclass(frozen=True)
class _Row:
    """One prompt in the model's own form, picture included.

    Args:
        id: The record's id.
        inputs: What `model_inputs` made of it.
        length: Tokens of the prompt.
        kind: Only rows of one kind are decoded together.
        batch_size: The size of the batch it came in.
    """

    id: str
    inputs: dict[str, Any]
    length: int
    kind: Any
    batch_size: int


class _Reader:
    """Reads batches to rows, and refuses prompts that would be cut.

    Args:
        preprocessor: The model's.
        limit: Tokens of prompt and answer together.
        room: Tokens that the answer needs at least.
    """

    def __init__(self, preprocessor, limit, room):
        from keras_betakd.models.formats import format_of

        self.preprocessor = preprocessor
        self.format = format_of(preprocessor)
        self.limit = limit
        self.room = room
        self.ids: dict[str, None] = {}  # An ordered set.

    def rows(self, batches):
        for batch in [batches] if isinstance(batches, dict) else batches:
            yield from self._rows_of(batch)

    def _rows_of(self, batch):
        from keras_betakd.models.inputs import model_inputs

        size = len(batch["prompts"])
        ids = self._new_ids(batch, size)
        wanted = {k: batch[k] for k in ("prompts", "images") if k in batch}
        inputs = model_inputs(self.preprocessor, {"ids": ids, **wanted})
        lengths = self._lengths(inputs, ids)
        for i in range(size):
            row = {key: value[i] for key, value in inputs.items()}
            kind = lengths[i] if self.format.sees_whole_prompt else None
            yield _Row(ids[i], row, lengths[i], kind, size)

    def _new_ids(self, batch, size):
        start = len(self.ids)
        ids = batch.get("ids")
        ids = range(start, start + size) if ids is None else ids
        ids = [str(name) for name in ids]
        for name in ids:
            if name in self.ids:
                raise ValueError(f"Each record must have an id of its own: {name!r}.")
            self.ids[name] = None
        return ids

    def _lengths(self, inputs, ids):
        """The tokens of each prompt where the answer is decoded."""
        found = self.format.prompt_lengths(inputs, self.limit)
        decoded = found.pop(self.format.answer_length)
        for attribute, lengths in found.items():
            limit = getattr(self.preprocessor, attribute)
            for name, length in zip(ids, lengths, strict=True):
                if length > limit:
                    raise ValueError(
                        f"Record {name!r}: its prompt has {length} tokens, but "
                        f"`preprocessor.{attribute}` is {limit}. Raise it, or shorten "
                        "the prompt."
                    )
        for name, length in zip(ids, decoded, strict=True):
            self._check_room(name, length)
        return decoded

    def _check_room(self, name, length):
        if length + self.room > self.limit:
            raise ValueError(
                f"Record {name!r}: its prompt has {length} tokens, its answer needs "
                f"room for {self.room}, but {self.limit} are the limit. Give a greater "
                "`max_length`, a greater `sequence_length` to the preprocessor, or a "
                "smaller `max_new_tokens`."
            )


def _groups(rows, batch_size):
    """Rows that go together, in groups of one size but for the last of a kind."""
    waiting = collections.defaultdict(list)
    for row in rows:
        batch_size = batch_size or row.batch_size
        waiting[row.kind].append(row)
        if len(waiting[row.kind]) == batch_size:
            yield waiting.pop(row.kind)
    for group in waiting.values():
        yield group + group[-1:] * (batch_size - len(group))


def _total_length(group, limit, max_new_tokens):
    """Tokens to decode `group` in, rounded up: few shapes to compile."""
    if max_new_tokens is None:
        return limit
    needed = max(row.length for row in group) + max_new_tokens
    return min(limit, -(-needed // _LENGTH_STEP) * _LENGTH_STEP)


def _answer(model, group, max_length):
    from keras_betakd.models.inputs import generation_inputs

    inputs = generation_inputs(model.preprocessor, _batch(group))
    return _cleaned(group, model.generate(inputs, max_length=max_length))


def _recomputing(model, max_new_tokens):
    """As `_answer`, for a model that is run anew for each token."""
    from keras_betakd.evaluation.recomputing import recomputed_answers

    def answer(model, group, max_length):
        return _cleaned(group, decode(_batch(group), max_length))

    decode = recomputed_answers(model, max_new_tokens)
    return answer


def _batch(group):
    inputs = {key: [row.inputs[key] for row in group] for key in group[0].inputs}
    stacked = {k: np.stack(v) for k, v in inputs.items() if hasattr(v[0], "shape")}
    return {**inputs, **stacked}


def _cleaned(group, texts):
    # Repetitions of the last row give the same answer once more.
    return {row.id: clean_answer(text) for row, text in zip(group, texts, strict=True)}


@contextlib.contextmanager
def _greedy(model, max_new_tokens):
    """Makes `model.generate` greedy and its answers short, for a while.

    Only two public attributes of the model are exchanged, and given back: its
    sampler, and the compiled function that `make_generate_function` keeps.
    """
    from keras_hub.samplers import GreedySampler

    from keras_betakd.models.views import view_of

    sampler = getattr(model, "sampler", None)
    compiled = getattr(model, "generate_function", None)
    # The exact class: one that inherits from it may do something else.
    is_greedy = type(sampler) is GreedySampler
    view = view_of(model)
    try:
        if not is_greedy or view.is_mended:
            model.sampler, model.generate_function = GreedySampler(), None
        function = model.make_generate_function()
        if is_greedy and not view.is_mended:
            compiled = function
        model.generate_function = _answers_alone(function, max_new_tokens)
        with view.mended():
            yield
    finally:
        model.sampler, model.generate_function = sampler, compiled


def _answers_alone(function, max_new_tokens):
    """`function` without the prompt, each row's answer cut after `max_new_tokens`.

    `strip_prompt` of keras-hub's `generate` would do the first, but not every family
    has it.
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
