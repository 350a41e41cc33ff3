"""The steps of a run: what is read before the model is asked, and what comes of it."""

import contextlib
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from keras_betakd.data.batches import naming
from keras_betakd.data.images import IMAGE_MARK, check_image, load_image
from keras_betakd.evaluation.benchmarks.base import Benchmark
from keras_betakd.evaluation.decoding import answered_groups
from keras_betakd.evaluation.journal import Answer
from keras_betakd.evaluation.prompts import Prompt, PromptReader, PromptTooLong
from keras_betakd.files import read_jsonl
from keras_betakd.models import load_model


def load_questions(benchmark: Benchmark, directory: pathlib.Path) -> Sequence:
    """All questions of a benchmark.

    Raises:
        FileNotFoundError: A file is missing; the message says which there must be.
        ValueError: A file is damaged.
    """
    try:
        return benchmark.load(directory)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(
            f"{error}\n--data must be a folder with the published files of "
            f"{benchmark.title}: {benchmark.files}"
        ) from error


def check_questions(benchmark: Benchmark, questions: Sequence) -> None:
    """Raises for what would otherwise be found after hours of answers.

    Raises:
        FileNotFoundError: A picture is missing.
        ValueError: There are no questions, two have one id, a picture is damaged
            base64, or a question is about a picture that it lacks.
    """
    names = {question.id for question in questions}
    if not questions or len(names) < len(questions):
        raise ValueError(
            "The files in --data must hold questions, and each id once. Received: "
            f"{len(questions)} questions with {len(names)} different ids"
        )
    for question in questions:
        with naming(question.id):
            image = question.image
            if image is not None:
                check_image(image)
            elif IMAGE_MARK in benchmark.prompt(question):
                raise ValueError(
                    "it is asked about a picture, but has none. Take the files as they "
                    "are published."
                )


def answered(
    lines: Sequence[Mapping], benchmark: Benchmark, questions: Sequence
) -> dict[str, Answer]:
    """The answers of a run by question id.

    Raises:
        ValueError: A line is none of this command's, or answers what is not asked.
    """
    prompts = {question.id: benchmark.logged_prompt(question) for question in questions}
    found = {}
    for number, line in enumerate(lines, 1):
        try:
            name, prompt = line["answer_id"], line["prompt"]
            answer = Answer(str(line["text"]), int(line["metadata"]["max_new_tokens"]))
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(
                f"Line {number} of answers.jsonl is none that this command writes. "
                f"Take it out, to have its question asked again. Received: {line!r}"
            ) from error
        if prompts.get(name) != prompt:
            raise ValueError(
                f"Line {number} of answers.jsonl answers question {name!r} as --data "
                "does not ask it. Are they of one version? Give another --output to "
                f"ask anew. Received: {prompt!r}; asked now: {prompts.get(name)!r}"
            )
        found[name] = answer
    return found


def teacher_answers(
    path: str | os.PathLike, benchmark: Benchmark, every: Sequence, asked: Sequence
) -> dict[str, str]:
    """A teacher's answers by question id, out of a LLaVA answer file.

    Args:
        path: The file.
        benchmark: The benchmark.
        every: All its questions, which the lines may answer.
        asked: Those that are asked now.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It answers other questions.
    """
    if os.path.isdir(path):
        raise ValueError(
            "--teacher-answers must be a file, for example the answers.jsonl of a run. "
            f"Received: the folder '{path}'"
        )
    lines = read_jsonl(path)
    try:
        answers = benchmark.answers(every, lines)
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from error
    if not any(question.id in answers for question in asked):
        raise ValueError(
            f"'{path}' has no answer to any of the {len(asked)} questions of "
            f"{benchmark.title}."
        )
    return answers


def load(args, questions: Sequence):
    """The model, ready to be asked.

    Raises:
        UsageError: It cannot be loaded, does not answer, or does not see.
    """
    options = {} if args.dtype is None else {"dtype": args.dtype}
    with usage_errors():
        model = load_model(args.model, **options)
    preprocessor = getattr(model, "preprocessor", None)
    if preprocessor is None or not hasattr(model, "generate"):
        raise UsageError(
            f"'{args.model}' holds no model that answers prompts. Give the preset of a "
            "keras-hub CausalLM or Seq2SeqLM with its preprocessor. Received: "
            f"{type(model).__name__}"
        )
    sees = getattr(preprocessor, "image_converter", None) is not None
    if not sees and any(question.image is not None for question in questions):
        raise UsageError(
            f"'{args.model}' holds a model that takes no pictures, but the questions "
            "have them. Give one that sees (its preprocessor has an `image_converter`)."
            f" Received: {type(model).__name__}"
        )
    for name in ("sequence_length", "encoder_sequence_length"):
        if args.sequence_length and hasattr(preprocessor, name):
            setattr(preprocessor, name, args.sequence_length)
    return model


class UsageError(Exception):
    """An error whose message, without a traceback, says what to do."""


@contextlib.contextmanager
def usage_errors():
    """Takes the errors that reading files and presets is documented to raise as usage.

    Example:

    ```python
    with usage_errors():
        questions = load_gqa(...)
    ```
    """
    try:
        yield
    except (ImportError, OSError, ValueError) as error:
        raise UsageError(str(error)) from error


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
