"""The steps of a run: what is read before the model is asked, and what comes of it."""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import keras

from keras_betakd.data.batches import naming
from keras_betakd.data.images import IMAGE_MARK, check_image
from keras_betakd.evaluate import reports
from keras_betakd.evaluate.benchmark import Benchmark
from keras_betakd.evaluate.errors import UsageError, usage_errors
from keras_betakd.evaluation.agreement import score_agreement
from keras_betakd.files import read_jsonl
from keras_betakd.models import load_model


class Answer(NamedTuple):
    """An answer that is on disk.

    Args:
        text: The answer.
        room: How many tokens it could have had.
    """

    text: str
    room: int


def settings(args) -> dict:
    """What the answers depend on, as JSON has it."""
    folder = pathlib.Path(args.model)
    return {
        "benchmark": args.benchmark,
        "model": str(folder.absolute()) if folder.is_dir() else args.model,
        "model_saved": _date_saved(folder),
        "backend": keras.config.backend(),
        "dtype": args.dtype,
        "max_new_tokens": args.max_new_tokens,
        "sequence_length": args.sequence_length,
    }


def _date_saved(folder):
    """When a preset was saved: trained anew, it has the same path and other answers."""
    try:
        return json.loads((folder / "metadata.json").read_text())["date_saved"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


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


def make_report(
    args,
    benchmark: Benchmark,
    questions: Sequence,
    answers: Mapping[str, Answer],
    teacher: Mapping[str, str] | None = None,
) -> dict:
    """The report of a run that is complete.

    Raises:
        ValueError: The answers have no score.
    """
    texts = {question.id: answers[question.id].text for question in questions}
    rooms = [answers[question.id].room for question in questions]
    report = {
        "title": benchmark.title,
        "model": args.model,
        "official": benchmark.official,
        "limit": args.limit,
        "prompt_format": benchmark.prompt_format,
        **benchmark.scores(questions, texts),
        "new_tokens": {
            "most": args.max_new_tokens,
            "least": min(rooms),
            "limited_questions": sum(room < args.max_new_tokens for room in rooms),
        },
        "note": benchmark.note,
        "settings": settings(args),
        "versions": reports.versions(),
    }
    if teacher is not None:
        agreement = score_agreement(
            benchmark.outcomes(questions, teacher),
            benchmark.outcomes(questions, texts),
            {question.id: benchmark.expected(question) for question in questions},
        )
        report["agreement"] = reports.agreement_entries(agreement)
    return report
