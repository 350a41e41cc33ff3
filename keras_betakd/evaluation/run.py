"""The steps of an evaluation run: loading, generating answers, and the errors of users.

`keras_betakd.evaluate` calls them in this order: it loads and checks the questions,
reads the answers that are on disk, loads the model and generates the rest.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from keras_betakd import fingerprints
from keras_betakd.data.batches import naming
from keras_betakd.data.images import IMAGE_MARK, check_image, load_image
from keras_betakd.evaluation.benchmarks.base import Benchmark
from keras_betakd.evaluation.decoding import answered_groups
from keras_betakd.evaluation.journal import Answer
from keras_betakd.evaluation.prompts import PromptReader, PromptTooLong
from keras_betakd.files import read_jsonl
from keras_betakd.models import load_model
from keras_betakd.preprocessing.chat_templates import chat_template
from keras_betakd.preprocessing.prompts import Prompt


class UsageError(Exception):
    """An error that the user can correct; its message says how, without a traceback."""


@contextlib.contextmanager
def usage_errors():
    """Turns the documented errors of reading files and presets into `UsageError`.

    Raises:
        UsageError: An `ImportError`, `OSError` or `ValueError` occurred within.

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


def load_questions(benchmark: Benchmark, directory: pathlib.Path) -> Sequence:
    """All questions of a benchmark.

    Raises:
        FileNotFoundError: A file is missing; the message lists the files needed.
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
    """Checks the questions before any answer is generated, which may take hours.

    Raises:
        FileNotFoundError: An image is missing.
        ValueError: There are no questions, two have the same id, an image is damaged
            base64, or a question is about an image that it lacks.
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
                    "it is asked about an image, but has none. Take the files as they "
                    "are published."
                )


def recorded_answers(
    lines: Sequence[Mapping], benchmark: Benchmark, questions: Sequence
) -> dict[str, Answer]:
    """The answers in the lines of a run's journal, by question id.

    Raises:
        ValueError: This command did not write one of the lines, or it answers a
            question that is not among these, was prompted in another way, or is
            answered by another line too. The message has the line's number.
    """
    by_id = {question.id: question for question in questions}
    found: dict[str, Answer] = {}
    numbers: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        where = f"Line {number} of answers.jsonl"
        answer, name = _recorded_answer(line, where), line["answer_id"]
        _expect_asked(line, by_id.get(name), benchmark, where)
        if name in found:
            raise ValueError(
                f"{where} answers question {name!r}, as line {numbers[name]} does. "
                "Take one of them out, or both, to have it asked again. "
                f"Received: {answer.text!r} after {found[name].text!r}"
            )
        found[name], numbers[name] = answer, number
    return found


def _recorded_answer(line, where):
    """The answer in a line, which must be of the form that `answer_lines` yields."""
    lacking = [
        f"`{key}` must be a string"
        for key in ("answer_id", "prompt", "text")
        if not isinstance(line.get(key), str)
    ]
    metadata = line.get("metadata")
    room = metadata.get("max_new_tokens") if isinstance(metadata, Mapping) else None
    if type(room) is not int or room < 1:
        lacking.append("`metadata` must have `max_new_tokens`, an integer above 0")
    if lacking:
        raise ValueError(
            f"{where} is none that this command writes: {', '.join(lacking)}. Take it "
            f"out, to have its question asked again. Received: {line!r}"
        )
    return Answer(line["text"], room)


def _expect_asked(line, question, benchmark, where):
    """Raises if a line answers another question than the one that --data asks."""
    keys = ("question_id", "prompt")
    asked = None if question is None else benchmark.line(question, "")
    wanted = asked and [asked[key] for key in keys]
    received = [line.get(key) for key in keys]
    # 1 and True are equal.
    if received != wanted or type(received[0]) is not type(wanted[0]):
        raise ValueError(
            f"{where} answers question {line['answer_id']!r} as --data does not ask "
            "it. Are they of one version? Give another --output to ask anew. "
            f"Received: {received}; asked now: {wanted}"
        )


def questions_digest(
    benchmark: Benchmark, questions: Sequence, directory: pathlib.Path
) -> str:
    """The digest of all that the files in --data say about the questions.

    Images are those of `expect_same_images`; here, their names count.
    """
    found = []
    for question in questions:
        names = [field.name for field in dataclasses.fields(question)]
        fields = {name: getattr(question, name) for name in names}
        image = fields.get("image")
        if isinstance(image, (str, os.PathLike)):
            # The folder may be moved, or named in another way.
            fields["image"] = pathlib.Path(os.path.relpath(image, directory)).as_posix()
        found.append([benchmark.prompt(question), fields])
    return fingerprints.of_value(found)


def expect_same_images(lines: Sequence[Mapping], questions: Sequence) -> None:
    """Raises a `ValueError` if an image is not the one that was answered about.

    Args:
        lines: The lines of a run's journal.
        questions: The questions of this run.
    """
    digest, by_id = _image_digests(), {question.id: question for question in questions}
    for number, line in enumerate(lines, 1):
        question = by_id.get(line.get("answer_id"))
        if question is None:
            continue
        with naming(question.id):
            if line["metadata"].get("image") != digest(question):
                raise ValueError(
                    f"its image is not the one that line {number} of answers.jsonl "
                    "answers about: the file in --data was changed. Give another "
                    "--output to ask anew, or take the line out."
                )


def _image_digests():
    """A function of a question to its image's digest, which reads each file once."""
    known = {}

    def digest(question):
        image = question.image
        if not isinstance(image, (str, os.PathLike)):
            return fingerprints.of_image_source(image)
        if image not in known:
            known[image] = fingerprints.of_image_source(image)
        return known[image]

    return digest


def template_option(name: str) -> str | None:
    """The `prompt_template` that --prompt-template stands for.

    Raises:
        ValueError: There is no template of this name.
    """
    if name == "none":
        return None
    return name if name == "auto" else chat_template(name).name


def teacher_answers(
    path: str | os.PathLike, benchmark: Benchmark, every: Sequence, selected: Sequence
) -> dict[str, str]:
    """A teacher's answers by question id, read from a LLaVA answer file.

    Args:
        path: The file.
        benchmark: The benchmark.
        every: All its questions, which the lines may answer.
        selected: The questions of this run.

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
    if not any(question.id in answers for question in selected):
        raise ValueError(
            f"'{path}' has no answer to any of the {len(selected)} questions of "
            f"{benchmark.title}."
        )
    return answers


def load_generator(args, benchmark: Benchmark, questions: Sequence):
    """The model that the arguments name, with the sequence length that they give.

    With published pixels, it crops where the published run of its family does.

    Raises:
        UsageError: It cannot be loaded, does not generate text, or takes no images
            although questions have them.
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
    takes_images = getattr(preprocessor, "image_converter", None) is not None
    if not takes_images and any(question.image is not None for question in questions):
        raise UsageError(
            f"'{args.model}' holds a model that takes no images, but the questions "
            "have them. Give one that sees (its preprocessor has an `image_converter`)."
            f" Received: {type(model).__name__}"
        )
    for name in ("sequence_length", "encoder_sequence_length"):
        if args.sequence_length and hasattr(preprocessor, name):
            setattr(preprocessor, name, args.sequence_length)
    converter: Any = getattr(preprocessor, "image_converter", None)
    is_mobilevlm = getattr(converter, "aspect_ratio", None) == "pad"
    if args.pixels == "published" and benchmark.mobilevlm_crops and is_mobilevlm:
        converter.aspect_ratio = "crop"
    return model


def answer_lines(
    model,
    benchmark: Benchmark,
    questions: Sequence,
    batch_size: int,
    max_new_tokens: int,
    published: bool = False,
    prompt_template="auto",
) -> Iterator[list[dict]]:
    """Generates greedy answers and yields them as lines of an answer file.

    An answer has at most `max_new_tokens` tokens, or as many as the model's sequence
    length leaves after its prompt, whatever the batch it is in.

    Args:
        model: A keras-hub model with its preprocessor.
        benchmark: The benchmark.
        questions: Its questions.
        batch_size: Questions that are answered at once.
        max_new_tokens: Tokens of an answer.
        published: Whether images are read as `load_image` does by that name.
        prompt_template: The template of the prompts, as for `generate_answers`.

    Yields:
        The lines of the questions that were answered together, as soon as they are. The
        order is not that of the questions: prompts of like length are answered
        together.

    Raises:
        UsageError: An image cannot be read, or a question does not suit the model.
    """
    by_id = {question.id: question for question in questions}
    image_digest = _image_digests()
    with usage_errors():
        reader = PromptReader(model.preprocessor, prompt_template=prompt_template)
    batches = (
        _batch(benchmark, questions[start : start + batch_size], published)
        for start in range(0, len(questions), batch_size)
    )
    prompts = _prompts(reader, batches)
    for group in answered_groups(
        model, prompts, batch_size, max_new_tokens=max_new_tokens
    ):
        yield [
            {
                **benchmark.line(by_id[prompt.id], text),
                "answer_id": prompt.id,
                "metadata": {
                    "max_new_tokens": min(prompt.room, max_new_tokens),
                    "image": image_digest(by_id[prompt.id]),
                },
            }
            for prompt, text in group
        ]


def _prompts(reader, batches) -> Iterator[Prompt]:
    """The questions' prompts; each batch is read when it is needed."""
    with usage_errors():
        try:
            yield from reader.read(batches)
        except PromptTooLong as error:
            message = f"{error.fact} Give a greater --sequence-length."
            raise UsageError(message) from error


def _batch(benchmark, questions, published):
    return {
        "ids": [question.id for question in questions],
        "prompts": [benchmark.prompt(question) for question in questions],
        "images": [_images(question, published) for question in questions],
    }


def _images(question, published):
    with naming(question.id):
        return [] if question.image is None else [load_image(question.image, published)]
