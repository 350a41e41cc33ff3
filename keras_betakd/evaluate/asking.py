"""Asking a model questions, a group at a time, so that answers can be kept at once."""

from collections.abc import Iterator, Sequence

from keras_betakd.data.batches import naming
from keras_betakd.data.images import load_image
from keras_betakd.evaluate.benchmark import Benchmark
from keras_betakd.evaluate.errors import UsageError, usage_errors
from keras_betakd.evaluation.decoding import answered_groups
from keras_betakd.evaluation.prompts import Prompt, PromptReader, PromptTooLong


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
        model: A keras-hub model with its preprocessor.
        benchmark: The benchmark.
        questions: Its questions.
        batch_size: Questions that are answered at once.
        max_new_tokens: Tokens of an answer.

    Yields:
        The lines of the questions that were answered together, as soon as they are. In
        a family that only answers questions of one length together, the order is not
        that of the questions.

    Raises:
        UsageError: A picture cannot be read, or a question does not suit the model.
    """
    asked = {question.id: question for question in questions}
    prompts = _prompts(model.preprocessor, benchmark, questions, batch_size)
    for group in answered_groups(
        model, prompts, batch_size, max_new_tokens=max_new_tokens
    ):
        yield [
            {
                **benchmark.line(asked[prompt.id], text),
                "answer_id": prompt.id,
                "metadata": {"max_new_tokens": min(prompt.room, max_new_tokens)},
            }
            for prompt, text in group
        ]


def _prompts(preprocessor, benchmark, questions, batch_size) -> Iterator[Prompt]:
    """The questions' prompts, read when they are needed."""
    batches = (
        _batch(benchmark, questions[start : start + batch_size])
        for start in range(0, len(questions), batch_size)
    )
    with usage_errors():
        try:
            yield from PromptReader(preprocessor).read(batches)
        except PromptTooLong as error:
            message = f"{error.fact} Give a greater --sequence-length."
            raise UsageError(message) from error


def _batch(benchmark, questions):
    return {
        "ids": [question.id for question in questions],
        "prompts": [benchmark.prompt(question) for question in questions],
        "images": [_images(question) for question in questions],
    }


def _images(question):
    with naming(question.id):
        return [] if question.image is None else [load_image(question.image)]
