"""Evaluates a model on a benchmark: generates its answers and scores them.

    python -m keras_betakd.evaluate --model PRESET --benchmark gqa --data DIR

The package also installs this command as keras-betakd-evaluate. PRESET is a folder that
`save_to_preset` wrote, the name of a keras-hub preset, or a handle such as hf://...;
KERAS_BACKEND selects Keras' backend. The prompts are those of the published protocol.
Decoding is greedy, and no answer depends on the batch size. DIR holds the files as they
are published:

{files}

--output receives answers.jsonl (in LLaVA's format, written to disk after each batch and
sorted in the order of the questions at the end), run.json (what the answers depend on)
and report.json. A run that was stopped or killed continues when the same command is
given again, with the same model, questions, images and versions; another process with
the same --output is refused meanwhile.

--limit N evaluates the first N questions only: N of each category of POPE, the two
questions about N images of each task of MME, and N questions of MMBench in all their
rotations.

Exit code: 0 for scores, 1 if the answers have none, 2 for an error in the arguments,
files or presets, a full disk, or an --output that another process uses, 3 for an error
of the program (with its traceback), 130 after Ctrl-C.
"""

import argparse
import contextlib
import os
import pathlib
import sys
import traceback

import keras

from keras_betakd import fingerprints, interrupts
from keras_betakd.evaluation import run
from keras_betakd.evaluation.benchmarks.registry import BENCHMARKS
from keras_betakd.evaluation.journal import Journal
from keras_betakd.evaluation.report import make_report, run_settings, table
from keras_betakd.evaluation.run import UsageError, answer_lines, usage_errors


def main(argv=None):
    """Runs the command; returns its exit code.

    Args:
        argv: list of strings, the arguments; those of the process if `None`.
    """
    args = _parse(argv)
    stopped = (
        f"\nStopped. What is answered is in '{args.output}'; the same command goes on "
        "from there.\n"
    )
    with interrupts.noted(stopped) as noted:
        code, message = _outcome(args, stopped)
        if noted:  # whatever became of it
            code, message = interrupts.EXIT_CODE, stopped
    if not _is_flushed():
        code, message = code or 2, message or "error: the output cannot be written\n"
    with contextlib.suppress(OSError):
        sys.stderr.write(message)
    return code


def _outcome(args, stopped):
    """Runs the command; returns its exit code and what to write to standard error."""
    try:
        return _run(args), ""
    except KeyboardInterrupt:
        return interrupts.EXIT_CODE, stopped
    except (UsageError, OSError) as error:
        return 2, f"error: {error}\n"
    except Exception:
        # Not 1, which says that there is no score.
        return 3, traceback.format_exc()


def _is_flushed():
    """Whether all output is written; if not, it is given up."""
    try:
        sys.stdout.flush()
    except OSError:
        # Python would try again as it ends, and exit with a code of its own.
        sys.stdout = open(os.devnull, "w")
        return False
    return True


def _parse(argv):
    files = "\n".join(f"  {name:10} {b.files}" for name, b in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog=_program(),
        description=__doc__.replace("{files}", files),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, metavar="PRESET", help="folder, name or handle")
    add("--benchmark", required=True, choices=BENCHMARKS)
    add("--data", required=True, type=pathlib.Path, metavar="DIR")
    add("--limit", type=_positive, metavar="N", help="only the first N questions")
    add("--batch-size", type=_positive, default=8, help="default: %(default)s")
    add("--output", type=pathlib.Path, help="default: output/evaluate/MODEL/BENCHMARK")
    add(
        "--max-new-tokens",
        type=_positive,
        help="default: the published 128, for scienceqa and mmbench 1024; in any case "
        "no more than the sequence length leaves, which the report then says",
    )
    add(
        "--prompt-template",
        default="auto",
        metavar="NAME",
        help="the chat template of an instruction-tuned model: auto (default), the "
        "model's own where it is known; none; or a name, such as gemma3",
    )
    add("--sequence-length", type=_positive, help="default: the preset's")
    add("--dtype", help="dtype policy, e.g. bfloat16; default: the preset's")
    add(
        "--form",
        choices=[form for b in BENCHMARKS.values() for form in b.forms],
        help="of scienceqa: the published form of its prompts; default: the text of "
        "the question file, where DIR has one, else llava-1.5",
    )
    add(
        "--pixels",
        choices=["corrected", "published"],
        default="corrected",
        help="corrected (default): images turned upright, transparent parts white, 16 "
        "bits scaled; published: as the published evaluations read and crop them",
    )
    add(
        "--teacher-answers",
        type=pathlib.Path,
        metavar="FILE",
        help="answers.jsonl of the teacher: adds how far the model repeats its errors",
    )
    args = parser.parse_args(argv)
    if args.form and args.form not in BENCHMARKS[args.benchmark].forms:
        parser.error(f"--form: {args.benchmark} has one form only")
    if args.max_new_tokens is None:
        args.max_new_tokens = BENCHMARKS[args.benchmark].max_new_tokens
    if args.output is None:
        folder = pathlib.Path("output", "evaluate", _model_name(args.model))
        args.output = folder / args.benchmark
    args.prompt_template = _template(parser, args.prompt_template)
    return args


def _template(parser, name):
    try:
        return run.template_option(name)
    except ValueError as error:
        parser.error(str(error))


def _model_name(model):
    """The last part of a preset's path, name or handle, as the name of a folder."""
    path = pathlib.Path(model)
    name = (path.resolve() if path.is_dir() else path).name
    return name if name.strip(". ") else "model"


def _program():
    """The command that the user typed: the console script, or the module."""
    name = pathlib.Path(sys.argv[0]).stem
    return name if name == interrupts.COMMAND else f"python -m {interrupts.MODULE}"


def _positive(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be 1, 2, 3, ... Received: {text!r}")
    return int(text)


def _run(args):
    benchmark = BENCHMARKS[args.benchmark]
    if args.form:
        benchmark = benchmark.in_form(args.form)
    with usage_errors():
        every = run.load_questions(benchmark, args.data)
        selected = benchmark.first(every, args.limit or len(every))
        run.check_questions(benchmark, selected)
        teacher = args.teacher_answers and run.teacher_answers(
            args.teacher_answers, benchmark, every, selected
        )
        digest = run.questions_digest(benchmark, every, args.data)
        journal = Journal(args.output, run_settings(args, digest))
    with journal:
        return _run_in(journal, args, benchmark, every, selected, teacher)


def _run_in(journal, args, benchmark, every, selected, teacher):
    """Answers what the journal does not hold, and reports; returns the exit code."""
    with usage_errors():
        answers = run.recorded_answers(journal.lines, benchmark, every)
        run.expect_same_images(journal.lines, selected)
    remaining = [question for question in selected if question.id not in answers]
    if journal.cut:
        sys.stdout.write(f"'{journal.path}' ended in half a line, now cut off.\n")
    sys.stdout.write(
        f"{benchmark.title}: {len(selected)} questions, {len(remaining)} to be "
        "answered\n"
    )
    if remaining:
        _generate(args, benchmark, remaining, journal)
        answers = run.recorded_answers(journal.lines, benchmark, every)
    journal.sort([question.id for question in every])
    try:
        result = make_report(
            args, benchmark, selected, answers, journal.settings, teacher
        )
    except ValueError as error:
        sys.stderr.write(f"'{journal.path}' is complete, but has no score: {error}\n")
        return 1
    path = journal.write_report(result)
    sys.stdout.write(f"\n{table(result)}\n\nWritten to '{path}'.\n")
    return 0


def _generate(args, benchmark, questions, journal):
    """Generates the answers to these questions and appends them to the journal."""
    model = run.load_generator(args, benchmark, questions)
    interrupts.raise_if_noted()
    with usage_errors():
        journal.expect_maker(fingerprints.maker_of(model, args.prompt_template))
    bar = keras.utils.Progbar(len(questions), unit_name="question")
    bar.update(0)  # the first answers may take a minute
    for lines in answer_lines(
        *(model, benchmark, questions, args.batch_size, args.max_new_tokens),
        published=args.pixels == "published",
        prompt_template=args.prompt_template,
    ):
        journal.append([{**line, "model_id": args.model} for line in lines])
        interrupts.raise_if_noted()
        bar.add(len(lines))


if __name__ == "__main__":
    sys.exit(main())
