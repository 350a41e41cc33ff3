"""From the start of `fit` to the end of its first step, and of a whole short epoch.

    python benchmarks/first_step.py
    python benchmarks/first_step.py --root ../before    # beside another checkout

A Gemma-3-shaped pair of `--blocks` decoder blocks each and of width `--width`; raw
records with an image. An epoch is a batch of 4 records and one of 3, and so is its
validation: each step and each size that is compiled anew shows.

Every run is a fresh process, and they take turns over `--rounds`. `cold` starts with
an empty folder of caches, `warm` with what `cold` has left there; `root` is the code of
the other checkout with an empty one. The table gives medians: seconds of the first
step; what a processor was at work for it, which other programs change less, and what
of that Python took to trace the step (the time inside `train_step`); the same two of
the whole epoch; how often the training step and the validation's step were traced.
PyTorch runs both anew for each batch.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time

from measure import in_fresh_process
from teacher_cache import records, with_preprocessor
from train_step import gemma3

BATCH, RECORDS, CLASSES = 4, 7, 4096
COLUMNS = ("first step", "processor", "tracing", "epoch", "processor of epoch")
LINE = "{:<11} {:<5} {:>10} {:>9} {:>8} {:>7} {:>18} {:>6} {:>9}\n"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", default=["jax", "tensorflow", "torch"])
    parser.add_argument("--root", help="another checkout of this library")
    for name, default in {"blocks": 26, "width": 64, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--worker", action="store_true")
    return parser.parse_args()


def main():
    options = arguments()
    if options.worker:
        sys.stdout.write("\n" + json.dumps(first_epoch(options)) + "\n")
        return
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # the library's own is measured
    sys.stdout.write(LINE.format("backend", "run", *COLUMNS, "train", "validate"))
    for backend in options.backends:
        found = {}
        for _ in range(options.rounds):
            for path, numbers in one_round(backend, options):
                found.setdefault(path, []).append(numbers)
        for path, runs in found.items():
            sys.stdout.write(LINE.format(backend, path, *cells(runs)))
            sys.stdout.flush()


def one_round(backend, options):
    """Pairs of a path and what its process reports."""
    shared = ["--worker", "--blocks", options.blocks, "--width", options.width]

    def numbers(folder, **others):
        environment = {"XDG_CACHE_HOME": folder, **others}
        return in_fresh_process(__file__, shared, backend, environment)

    with tempfile.TemporaryDirectory() as folder:
        if options.root:
            root = os.path.abspath(options.root)
            yield "root", numbers(os.path.join(folder, "root"), PYTHONPATH=root)
        ours = os.path.join(folder, "ours")
        yield "cold", numbers(ours)
        if backend == "jax":
            yield "warm", numbers(ours)


def cells(runs):
    failed = [run["failed"] for run in runs if "failed" in run]
    if failed:
        return failed[0], *[""] * 6
    seconds = [
        f"{statistics.median(run[name] for run in runs):.1f}" for name in COLUMNS
    ]
    return *seconds, runs[-1]["train"], runs[-1]["validate"]


def first_epoch(options):
    """Seconds and numbers of traces of an epoch with validation."""
    import keras

    keras.utils.set_random_seed(0)
    pair = [
        with_preprocessor(gemma3(CLASSES, options.width, options.blocks))
        for _ in range(2)
    ]
    model, data, found = distiller(*pair), records(RECORDS), {}
    model.train_step = timed(model.train_step, calls := [])
    model.test_step = timed(model.test_step, tests := [])

    class FirstStep(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            float(logs["loss"])  # waits for the step
            if not found:
                found["first step"], found["processor"] = since(begin)

    begin = clocks()
    model.fit(
        data,
        batch_size=BATCH,
        validation_data=data,
        callbacks=[FirstStep()],
        verbose=0,
    )
    found["epoch"], found["processor of epoch"] = since(begin)
    counts = {"train": len(calls), "validate": len(tests)}
    return {**found, **counts, "tracing": calls[0]}


def clocks():
    """Seconds, and those for which a processor was at work in this process."""
    return time.perf_counter(), time.process_time()


def since(begin):
    return [now - then for now, then in zip(clocks(), begin, strict=True)]


def timed(step, seconds):
    """`step`, which adds to a list how long a processor was in each call."""

    def run(*args):
        begin = clocks()
        try:
            return step(*args)
        finally:
            seconds.append(since(begin)[1])

    return run


def distiller(teacher, student):
    import keras_betakd as kd

    preprocessor = kd.DistillationPreprocessor(
        teacher.preprocessor, student.preprocessor, max_response_length=16
    )
    model = kd.BetaKDDistiller(
        teacher,
        student,
        kd.CosineProbsEnergy(),
        kd.InstanceBeta(),
        preprocessor=preprocessor,
    )
    model.compile()
    return model


if __name__ == "__main__":
    main()
