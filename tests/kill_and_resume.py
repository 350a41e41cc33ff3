"""Kills `examples/scienceqa.py` at random moments, and lets it go on each time.

    KERAS_BACKEND=torch python tests/kill_and_resume.py --kills 20 --lora-rank 2
    KERAS_BACKEND=torch python tests/kill_and_resume.py --kills 20 --on-policy 0.5

One run is left alone. Others are killed (SIGKILL) and started again with `--resume`
until they end; their tables, histories and weights must be those of the first. Prints
when each kill came, and ends with an error where anything differs. Takes some minutes.
"""

import argparse
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
SMALL = "--epochs 6 --limit 96 --eval-limit 48 --batch-size 16".split()


def start(output, options):
    command = [sys.executable, ROOT / "examples" / "scienceqa.py", "--resume"]
    command += ["--output", output, *SMALL, *options]
    with open(output.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def finished(process):
    if process.wait() != 0:
        raise SystemExit(f"A run failed with {process.returncode}; see its log.")


def run_killed(output, options, longest, kills, generator):
    """Runs to the end, killed at most a given number of times; returns the count."""
    count = 0
    while count < kills:
        process = start(output, options)
        seconds = generator.uniform(0, longest)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            count += 1
            print(f"killed after {seconds:.1f} s", flush=True)
            continue
        finished(process)
        return count
    finished(start(output, options))
    return count


def results(output):
    """Reads the results of a run: its table without the seconds, history, weights."""
    import h5py

    lines = output.with_suffix(".log").read_text().splitlines()
    head = max(i for i, line in enumerate(lines) if line.startswith("model "))
    table = [line.rsplit("|", 1)[0] for line in lines[head : head + 5]]
    weights = {}
    with h5py.File(output / "student" / "model.weights.h5") as file:
        file.visititems(
            lambda name, item: (
                weights.update({name: np.array(item)})
                if isinstance(item, h5py.Dataset)
                else None
            )
        )
    return table, (output / "history.csv").read_text(), weights


def compare(expected, found):
    """Raises an error if two runs differ."""
    if expected[:2] != found[:2]:
        raise SystemExit("Tables or histories differ:\n" + "\n".join(found[0]))
    for name, value in expected[2].items():
        np.testing.assert_array_equal(found[2][name], value, err_msg=name)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--lora-rank", help="train LoRA weights of this rank only")
    parser.add_argument("--on-policy", help="share of prompts the student answers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="folder of the runs; a new one if left out")
    args = parser.parse_args()
    folder = pathlib.Path(args.output or tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    options = ["--lora-rank", args.lora_rank] if args.lora_rank else []
    options += ["--on-policy", args.on_policy] if args.on_policy else []
    began = time.time()
    finished(start(folder / "unbroken", options))
    length = time.time() - began
    expected = results(folder / "unbroken")
    print(f"unbroken: {length:.0f} s", *expected[0], sep="\n", flush=True)
    generator, kills, runs = random.Random(args.seed), 0, 0
    while kills < args.kills:
        output = folder / f"killed_{runs}"
        left = args.kills - kills
        kills += run_killed(output, options, length, left, generator)
        compare(expected, results(output))
        runs += 1
    backend = os.environ.get("KERAS_BACKEND", "jax")
    print(f"{backend}: {kills} kills in {runs} runs, all the same in the end")


if __name__ == "__main__":
    main()
