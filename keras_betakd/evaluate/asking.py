"""Asking a model questions, a batch at a time, so that answers can be kept at once."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from keras_betakd.data.batches import naming
from keras_betakd.data.images import load_image
from keras_betakd.evaluate.benchmark import Benchmark
from keras_betakd.evaluate.errors import UsageError, usage_errors
from keras_betakd.evaluation.generation import generate_answers
from keras_betakd.models.formats import format_of
from keras_betakd.models.inputs import model_inputs
from keras_betakd.models.views import view_of

# Where one call of `generate_answers` is worth little for a single batch.
_BATCHES_PER_CALL = 16


class Asked(NamedTuple):
    """A question as it is put to the model.

    Args:
        question: The benchmark's question.
        prompt: What the model is asked.
        images: Its pictures, as arrays.
        room: Tokens that the sequence leaves for the answer.
    """

    question: Any
    prompt: str
    images: list
    room: int


def answer_lines(
    model,
    benchmark: Benchmark,
    questions: Sequence,
    batch_size: int,
    max_new_tokens: int,
) -> Iterator[list[dict]]:
    """Lets the model answer, greedily, and yields lines of an answer file.

    An answer has `max_new_tokens` at most, or what the model's sequence length leaves,
    whatever the batch it is in.

    Args:
        model: A keras-hub model with its preprocessor. It is compiled anew.
        benchmark: The benchmark.
        questions: Its questions.
        batch_size: Questions that are answered at once.
        max_new_tokens: Tokens of an answer.

    Yields:
        The lines of some questions, one or several batches of them.

    Raises:
        UsageError: A picture cannot be read, or a question does not suit the model.
    """
    model.compile(sampler="greedy")  # Keeps what is compiled from call to call.
    for part in _parts(questions, batch_size * _batches_per_call(model)):
        asked = [
            row
            for few in _parts(part, batch_size)
            for row in _read(model.preprocessor, benchmark, few)
        ]
        answers = _answers(model, asked, batch_size, max_new_tokens)
        yield [
            _line(benchmark, row, answers[row.question.id], max_new_tokens)
            for row in asked
        ]


def _parts(items, size):
    return [items[start : start + size] for start in range(0, len(items), size)]


def _batches_per_call(model):
    """Several where a call compiles anew, or groups prompts of one length."""
    family, view = format_of(model.preprocessor), view_of(model)
    is_kept = family.decodes_cached and not view.is_mended
    return 1 if is_kept and not family.sees_whole_prompt else _BATCHES_PER_CALL


def _read(preprocessor, benchmark, questions):
    with usage_errors():
        prompts = [benchmark.prompt(question) for question in questions]
        images = [_images(question) for question in questions]
        ids = [question.id for question in questions]
        batch = {"ids": ids, "prompts": prompts, "images": images}
        rooms = _rooms(preprocessor, batch)
    return list(map(Asked, questions, prompts, images, rooms))


def _images(question):
    with naming(question.id):
        return [] if question.image is None else [load_image(question.image)]


def _rooms(preprocessor, batch):
    """Tokens left for each answer, one at least."""
    family = format_of(preprocessor)
    inputs = model_inputs(preprocessor, batch)
    lengths = family.prompt_lengths(inputs, preprocessor.sequence_length)
    for attribute, found in lengths.items():
        limit = getattr(preprocessor, attribute)
        longest = max(found)
        if longest + (attribute == family.answer_length) > limit:
            name = batch["ids"][found.index(longest)]
            raise UsageError(
                f"Question {name!r} has {longest} tokens with its picture, and the "
                f"model's {attribute} is {limit}: nothing is left for an answer. Give "
                "a greater --sequence-length."
            )
    decoded = lengths[family.answer_length]
    return [preprocessor.sequence_length - length for length in decoded]


def _answers(model, asked, batch_size, max_new_tokens):
    """Those with room for a whole answer, and those whose sequence ends before it."""
    ample = [row for row in asked if row.room >= max_new_tokens]
    scarce = [row for row in asked if row.room < max_new_tokens]
    answers = {}
    for rows, limit in ((ample, max_new_tokens), (scarce, None)):
        if rows:
            batches = map(_batch, _parts(rows, batch_size))
            answers |= generate_answers(
                model, batches, batch_size, max_new_tokens=limit, progress=False
            )
    return answers


def _batch(rows):
    return {
        "ids": [row.question.id for row in rows],
        "prompts": [row.prompt for row in rows],
        "images": [row.images for row in rows],
    }


def _line(benchmark, row, text, max_new_tokens):
    return {
        **benchmark.line(row.question, text),
        "answer_id": row.question.id,
        "metadata": {"max_new_tokens": min(row.room, max_new_tokens)},
    }
