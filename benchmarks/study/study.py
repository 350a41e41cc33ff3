"""Does a learned beta help? A study on drawn problems that anyone can repeat.

    python benchmarks/study/study.py cell      # one cell of the table, from scratch
    python benchmarks/study/study.py run       # all runs; goes on where it was stopped
    python benchmarks/study/study.py confirm   # what was found, with other seeds
    python benchmarks/study/study.py others    # the same where more than beta differs
    python benchmarks/study/study.py report    # writes docs/study.md and its plots
    python benchmarks/study/study.py teachers  # trains the teachers anew

`cell` trains the students of one arm in one setting anew, and prints their accuracy
beside the committed one. `run` adds a line to `benchmarks/study/runs.jsonl` for each
run that is not there. `teachers` writes to `--output`; those that the study takes are
in `presets/`. See `problems.py` for the data and `arms.py` for the arms. Keras runs on
JAX.
"""

import argparse
import contextlib
import itertools
import os
import time

os.environ["KERAS_BACKEND"] = "jax"

from arms import CONFIRMED, GROUPS, arms_of, program_of
from paired import spread
from settings import EXPERIMENTS, FRESH_SEEDS, SEEDS, experiment_of
from store import RunStore

from keras_betakd.folders import FolderOwner

HERE = os.path.dirname(os.path.abspath(__file__))


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    everywhere = [name for e in EXPERIMENTS.values() for name in e.settings]
    others = [name for name in EXPERIMENTS if name != "drawn"]
    add("command", choices=COMMANDS)
    add("--arm", default="cosine-probs / task", help="of `cell`")
    add("--setting", default="noisy", choices=everywhere, help="of `cell`")
    add("--groups", nargs="+", choices=GROUPS, default=list(GROUPS), help="of `run`")
    add("--arms", nargs="+", help="in the place of all")
    add("--experiments", nargs="+", choices=others, default=others, help="of `others`")
    add("--settings", nargs="+", choices=everywhere, help="all by default")
    add("--seeds", nargs="+", type=int, default=list(SEEDS))
    add("--output", default="output/study", help="folder of teachers and caches")
    add("--runs", default=os.path.join(HERE, "runs.jsonl"), help="file of the runs")
    return parser.parse_args()


def run(args):
    """Makes the runs that are not in the file."""
    args.arms = args.arms or [arm for group in args.groups for arm in GROUPS[group]]
    with owned_runs(args) as store:
        run_on("drawn", args.arms, store, args)


def confirm(args):
    """Makes the runs of other seeds that are not in the file."""
    args.arms, args.seeds = CONFIRMED, list(FRESH_SEEDS)
    run(args)


def others(args):
    """Makes the runs of the other experiments that are not in the file."""
    with owned_runs(args) as store:
        for name in args.experiments:
            run_on(name, args.arms or arms_of(name), store, args)


@contextlib.contextmanager
def owned_runs(args):
    """The file of the runs, while no other process writes to it."""
    with FolderOwner(os.path.dirname(os.path.abspath(args.runs)), "benchmarks/study"):
        yield RunStore(args.runs)


def run_on(name, arms, store, args):
    """Makes the runs of an experiment that are not in the file."""
    settings = list(EXPERIMENTS[name].settings)
    if args.settings:
        settings = [s for s in settings if s in args.settings]
    trainer = None
    for program, group in itertools.groupby(arms, program_of):
        jobs = list(itertools.product(group, settings, args.seeds))
        jobs = [job for job in jobs if job not in store]
        if not jobs:
            continue
        trainer = trainer or make_trainer(args, name)
        start = time.time()
        for made in trainer.run(jobs):
            store.add(made)
        seconds = time.time() - start
        print(f"{name}, {program}: {len(jobs)} runs, {seconds:.0f} s", flush=True)


def cell(args):
    """Makes the runs of one arm and setting anew; compares them with the file's."""
    committed = {
        r["seed"]: r["test"]["accuracy_choices"]
        for r in RunStore(args.runs).runs
        if (r["arm"], r["setting"]) == (args.arm, args.setting)
    }
    trainer = make_trainer(args, experiment_of(args.setting))
    found = trainer.run([(args.arm, args.setting, seed) for seed in args.seeds])
    print(f"{args.arm}, {args.setting}\nseed    now  committed")
    for made in found:
        before = committed.get(made["seed"], float("nan"))
        accuracy = made["test"]["accuracy_choices"]
        print(f"{made['seed']:4} {accuracy:6.2f} {before:10.2f}")
    mean, deviation = spread([made["test"]["accuracy_choices"] for made in found])
    print(f"mean {mean:.2f}, standard deviation {deviation:.2f}")


def make_trainer(args, name):
    from runs import Trainer, starts_of
    from tasks import load_tasks

    experiment = EXPERIMENTS[name]
    tasks = load_tasks(args.output, experiment)
    return Trainer(tasks, experiment, starts_of(tasks, experiment, args.seeds))


def teachers(args):
    import sentences
    from teachers import train_teachers

    with FolderOwner(args.output, "benchmarks/study"):
        train_teachers(args.output)
        sentences.train_teachers(args.output)


def report(args):
    from tables import write_study

    docs = os.path.join(os.path.dirname(os.path.dirname(HERE)), "docs")
    write_study(args.runs, docs)


COMMANDS = {
    command.__name__: command
    for command in (cell, run, confirm, others, report, teachers)
}


def main():
    args = parse_arguments()
    COMMANDS[args.command](args)


if __name__ == "__main__":
    main()
