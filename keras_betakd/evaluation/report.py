"""The report of a run: a dict for report.json, and the same as a text table.

`run_settings` and `make_report` collect what report.json holds, `entry` and its kin
make its numbers, and `table` prints it.
"""

import pathlib
from collections.abc import Mapping, Sequence

from keras_betakd import fingerprints
from keras_betakd.evaluation.agreement import Agreement, score_agreement
from keras_betakd.evaluation.answer_text import thought_counts
from keras_betakd.evaluation.benchmarks.base import Benchmark
from keras_betakd.evaluation.intervals import Accuracy
from keras_betakd.evaluation.journal import Answer

_COLUMNS = ("", "score", "95 % interval", "n", "unparsed", "missing")
_EMPTY = ("",) * len(_COLUMNS)


def run_settings(args, questions: str) -> dict:
    """What the answers depend on and is known before the model is loaded.

    Args:
        args: The command's arguments.
        questions: The digest of the questions in --data.

    Returns:
        Dict of values of JSON. A preset's files are read whole, since a model that was
        trained again may have the same path, sizes and dates.
    """
    folder = pathlib.Path(args.model)
    # Not written by default, as in runs that were begun before there were any.
    chosen = getattr(args, "prompt_template", "auto")
    template = {} if chosen == "auto" else {"prompt_template": chosen}
    return {
        "benchmark": args.benchmark,
        "model": str(folder.absolute()) if folder.is_dir() else args.model,
        "model_files": fingerprints.of_folder(folder) if folder.is_dir() else None,
        "questions": questions,
        "dtype": args.dtype,
        "max_new_tokens": args.max_new_tokens,
        "sequence_length": args.sequence_length,
        "pixels": args.pixels,
        **template,
    }


def make_report(
    args,
    benchmark: Benchmark,
    questions: Sequence,
    answers: Mapping[str, Answer],
    settings: Mapping,
    teacher: Mapping[str, str] | None = None,
) -> dict:
    """The report of a complete run, as report.json holds it.

    Args:
        args: The command's arguments.
        benchmark: The benchmark.
        questions: The questions of the run.
        answers: The answer to each, by its id.
        settings: What the answers depend on, as run.json has it.
        teacher: A teacher's answers by question id, to report the agreement with it.

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
        "prompt_format": benchmark.prompt_format_of(questions),
        "pixels": args.pixels,
        **benchmark.scores(questions, texts),
        "thoughts": thought_counts(texts.values()),
        "new_tokens": {
            "most": args.max_new_tokens,
            "least": min(rooms),
            "limited_questions": sum(room < args.max_new_tokens for room in rooms),
        },
        "note": benchmark.note,
        "settings": settings,
        "versions": fingerprints.versions(),
    }
    if teacher is not None:
        agreement = score_agreement(
            benchmark.outcomes(questions, teacher),
            benchmark.outcomes(questions, texts),
            {question.id: benchmark.expected(question) for question in questions},
        )
        report["agreement"] = agreement_entries(agreement)
    return report


def entry(
    value: float | None,
    interval: Sequence[float] | None = None,
    n: int | None = None,
    **counts: int,
) -> dict:
    """One number of a report, with its interval and counts.

    Args:
        value: The number; `None` where it is not defined.
        interval: Its 95 % interval, if it has one.
        n: The number of questions that it is computed from.
        **counts: `unparsed` and `missing` answers.

    Example:

    >>> entry(50.0, n=2)
    {'value': 50.0, 'interval': None, 'n': 2}
    """
    interval = None if interval is None else list(interval)
    return {"value": value, "interval": interval, "n": n, **counts}


def share(accuracy: Accuracy | None) -> dict:
    """The entry of an accuracy; `None` stands for one that is not defined.

    Example:

    >>> share(None)
    {'value': None, 'interval': None, 'n': 0}
    """
    if accuracy is None:
        return entry(None, n=0)
    return entry(accuracy.percent, accuracy.interval, accuracy.n)


def shares(accuracies: Mapping) -> dict:
    """The entries of accuracies by category."""
    return {str(name): share(accuracy) for name, accuracy in accuracies.items()}


def agreement_entries(found: Agreement) -> dict:
    """The entries of a student's agreement with its teacher."""
    return {
        "same answer": share(found.same),
        "both right": share(found.both_right),
        "wrong where the teacher is right": share(found.wrong_elsewhere),
        "wrong where the teacher is wrong": share(found.wrong),
        "repeats the teacher's wrong answer": share(found.repeated),
        "the same by chance": entry(found.chance),
    }


def table(report: Mapping) -> str:
    """The report as a text table, without a line break at the end."""
    title = f"{report['title']}: {report['model']}"
    rows: list[tuple[str, ...]] = [_COLUMNS]
    for name, numbers in report["scores"].items():
        mark = " *" if name == report["official"] else ""
        rows.append(_row(name + mark, numbers))
    groups = dict(report["categories"])
    if "agreement" in report:
        groups["agreement with the teacher"] = report["agreement"]
    for group, entries in groups.items():
        rows += [_EMPTY, (group, *_EMPTY[1:])]
        rows += [_row(f"  {name}", numbers) for name, numbers in entries.items()]
    return "\n".join([title, "", *_aligned(rows), "", *_notes(report)])


def _row(name, numbers):
    value, interval = numbers["value"], numbers["interval"]
    counts = (numbers.get(key) for key in _COLUMNS[3:])
    return (
        name,
        "-" if value is None else f"{value:.2f}",
        "" if interval is None else "{:.2f} to {:.2f}".format(*interval),
        *("" if count is None else str(count) for count in counts),
    )


def _aligned(rows):
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        pairs = zip(others, widths[1:], strict=True)
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in pairs)]
        yield "  ".join(cells).rstrip()


def _notes(report):
    yield "* the number that papers report"
    if report["note"]:
        yield report["note"]
    yield from _thought_notes(report)
    tokens = report["new_tokens"]
    most, least, limited = (tokens[k] for k in ("most", "least", "limited_questions"))
    if limited:
        yield (
            f"The sequence length left {limited} answers fewer than {most} new tokens, "
            f"{least} at least; a --sequence-length greater by {most - least} leaves "
            "them to all"
        )


def _thought_notes(report):
    answers, silent = (report["thoughts"][k] for k in ("answers", "without_answer"))
    if answers:
        published = any("published scorer" in name for name in report["scores"])
        yield (
            f"{answers} answers hold a model's thoughts: what follows them is scored"
            + (
                ", but by the published scorer, which reads them too"
                if published
                else ""
            )
        )
    if silent:
        yield (
            f"{silent} of these are thoughts without an answer, which is wrong; a "
            "greater --max-new-tokens leaves room for one"
        )
