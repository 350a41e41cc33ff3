"""Generates greedy answers of a keras-hub model, the same for every batch size."""

from collections.abc import Iterable
from typing import Any

import keras

from keras_betakd.data.batches import Records, expect_positive
from keras_betakd.data.llava import LlavaDataset
from keras_betakd.data.llava_records import LlavaRecord
from keras_betakd.evaluation.decoding import answered_groups
from keras_betakd.evaluation.prompts import PromptReader
from keras_betakd.preprocessing.prompt_templates import PromptTemplate

_RECORDS_AT_ONCE = 8  # of a loader's, where no batch size is given


def generate_answers(
    model: keras.Model,
    batches: Iterable[dict] | dict,
    batch_size: int | None = None,
    max_length: int | None = None,
    max_new_tokens: int | None = None,
    progress: bool = True,
    prompt_template: PromptTemplate = "auto",
) -> dict[str, str]:
    """Generates the greedy answer of a keras-hub model to every prompt.

    The decoding is greedy whatever sampler the model was compiled with (keras-hub's
    own default samples at random), and the model's sampler and compiled function are
    left as they were. What is compiled for the greedy answers is kept with the model,
    until `compile` is called again, so that the next call need not compile it.

    An answer does not depend on the batch that its prompt is in, for two reasons.
    `max_new_tokens` is counted from the end of each prompt, where keras-hub decodes a
    whole batch to one length. And a model with bidirectional attention in its prompt
    (PaliGemma) decodes only prompts of one length together, because keras-hub, while it
    decodes the shorter prompts of a batch, overwrites the rest of the longer ones in
    the cache with values that attend to the past alone. A batch is decoded until each
    of its answers has ended or has `max_new_tokens`. Of a few batches, prompts of like
    length are answered together. On JAX and TensorFlow, a batch that is not full
    is padded with repetitions, which are dropped, so that no other shape is compiled.

    Args:
        model: A `keras_hub.models.CausalLM` or `Seq2SeqLM` with its preprocessor.
        batches: Dicts of `"prompts"` and optional `"ids"` and `"images"`, as
            `ScienceQADataset` makes them, or one such dict; or the records of a loader
            such as `load_chat`, whose last answers are not read. Without ids, they are
            "0", "1", and so on.
        batch_size: Prompts to generate for at once; by default, as many as the first
            batch has.
        max_length: Tokens of prompt and answer together; all batches are decoded in
            this one length. By default the preprocessor's `sequence_length`, or the
            length that a batch needs, rounded up, if `max_new_tokens` is given.
        max_new_tokens: Tokens of an answer; by default as many as `max_length` leaves.
        progress: Whether to show a progress bar. Its total is known for batches in a
            dict, a list, or a data set that tells its length.
        prompt_template: The template that prompts are written in: `"auto"` (default),
            a name, a `ChatTemplate`, a function or `None`, as for
            `DistillationPreprocessor`. In a chat template, batches may have `"system"`
            prompts, and conversations the `"responses"` to their earlier turns.

    Returns:
        The answers by id, in the order of the prompts, without end mark and special
        tokens. The thoughts of a model that reasons stay in them: the scorers read what
        follows, and `clean_answer` returns it.

    Raises:
        ValueError: A number of tokens or prompts is no positive integer; a prompt
            leaves no room for its answer (keras-hub would truncate it without a
            message); the images do not match the marks or the model; an id occurs
            twice. The message names the record.
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
        if value is not None:
            expect_positive(name, value)
    batches = _in_batches(batches, batch_size)
    room = max_new_tokens or 1
    reader = PromptReader(model.preprocessor, max_length, room, prompt_template)
    total = count_prompts(batches) if progress else None
    prompts = reader.read(batches)
    groups = answered_groups(model, prompts, batch_size, max_length, max_new_tokens)
    answers: dict[str, str] = {}
    bar = keras.utils.Progbar(total, unit_name="prompt") if progress else None
    if bar and total:
        bar.update(0)  # the first answers may take a minute
    for group in groups:
        answers.update((prompt.id, text) for prompt, text in group)
        if bar:
            bar.update(len(answers), finalize=False)
    if bar and answers:
        bar.target = len(answers)
        bar.update(len(answers), finalize=True)
    return {name: answers[name] for name in reader.ids}


def _in_batches(batches, batch_size):
    """The records of a loader as a data set; anything else as it is.

    Raises:
        TypeError: They are records whose prompts depend on a data set's settings.
    """
    if not isinstance(batches, Records):
        return batches
    if all(isinstance(record, LlavaRecord) for record in batches):
        return LlavaDataset(batches, batch_size or _RECORDS_AT_ONCE)
    raise TypeError(
        "Give a data set that makes prompts of these records, for example "
        f"`ScienceQADataset(records, batch_size=8)`. Received: {type(batches).__name__}"
    )


def count_prompts(batches: Any) -> int | None:
    """The number of prompts in batches; `None` where nothing tells it.

    A data set that tells the number of its batches alone is taken to have as many
    prompts in each as in the first, which is read.
    """
    if isinstance(batches, dict):
        return len(batches["prompts"])
    if isinstance(batches, (list, tuple)):
        return sum(len(batch["prompts"]) for batch in batches)
    size = getattr(batches, "num_batches", None)
    if size is None and hasattr(batches, "__len__"):
        size = len(batches)
    if not size:
        return None
    if hasattr(batches, "size_of"):  # of `keras_betakd.data`
        return sum(batches.size_of(i) for i in range(size))
    return size * len(batches[0]["prompts"])
