"""Helpers of the benchmarks: fresh processes, medians, spread and peak memory."""

import ctypes
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import time
import types

# The numbers of a peer that is not there: its line in a `Table` is no failure.
NOT_INSTALLED = {"failed": "not installed"}


def in_fresh_process(
    script, arguments, backend, python=sys.executable, limit=None, environment=None
):
    """What `report` wrote in a process of its own, or {"failed": last line}.

    Args:
        python: the interpreter.
        limit: the seconds after which the process is ended.
        environment: dict of further environment variables.
    """
    try:
        result = subprocess.run(
            [python, script, *(str(a) for a in arguments)],
            env={**os.environ, "KERAS_BACKEND": backend, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"no result within {limit:.0f} s"}
    except FileNotFoundError:
        return {"failed": f"no Python at {python}"}
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["no message"]
        reason = f"exit status {result.returncode}: {lines[-1]}"
        return {"failed": reason[:100]}
    return json.loads(result.stdout.strip().splitlines()[-1])


def in_rounds(rounds, jobs):
    """What fresh processes of every job report, `rounds` times each, taking turns.

    A machine that others use too is slow for minutes, and a process may be unlucky with
    its memory: taking turns spreads both over all jobs.

    Args:
        jobs: dict by any name of the arguments of `in_fresh_process`.

    Returns:
        Dict by name: the seconds of all rounds and the largest memory, what else the
        last one reports, or the failure.
    """
    results = {name: {"seconds": [], "megabytes": 0.0} for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            if "failed" in results[name]:
                continue
            numbers = in_fresh_process(*job)
            if "failed" in numbers:
                results[name] = numbers
                continue
            seconds = results[name]["seconds"] + numbers["seconds"]
            megabytes = max(results[name]["megabytes"], numbers["megabytes"])
            results[name] = {**numbers, "seconds": seconds, "megabytes": megabytes}
    return results


def report(step, repeats, parts=1, **others):
    """Writes seconds of each run of `step`, over `parts`, its peak memory, and others.

    Memory is of a run after the first one, which is not timed either, above what was
    held before the first one: what a compiler keeps counts, what it gives back not.
    Pages of program files do not count: those that a compiler touches for the first
    time are its own code, 50 MB or more, which every process shares.
    """
    start = held_memory()
    step()
    memory = peak_memory(step) - start
    seconds = [_seconds(step) / parts for _ in range(repeats)]
    hand_over({"seconds": seconds, "megabytes": memory, **others})


def hand_over(numbers):
    """Writes what `in_fresh_process` returns."""
    sys.stdout.write("\n" + json.dumps(numbers) + "\n")


def _seconds(run):
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def in_turns(makers, copies, turns, parts=1):
    """Writes seconds of the runs of one process, in turns of a random order.

    Args:
        makers: dict by path of functions that make a run.
        copies: how many runs to make of each path.
        turns: how often each of them runs, after two runs that are not timed.
        parts: what a run's seconds are divided by.
    """
    shuffle = random.Random(0)
    runs = {path: [] for path in makers}
    for i in range(copies):
        # Forwards and backwards: what is built first may get the better memory.
        for path in list(makers)[:: -1 if i % 2 else 1]:
            runs[path].append(makers[path]())
    calls = [(path, run) for path, same in runs.items() for run in same]
    for _, run in calls * 2:
        run()
    seconds = {path: [] for path in runs}
    for _ in range(turns):
        turn = {path: [] for path in runs}
        for path, run in shuffle.sample(calls, len(calls)):
            turn[path].append(_seconds(run) / parts)
        for path, values in turn.items():
            seconds[path].append(statistics.fmean(values))
    hand_over(seconds)


def compare(title, job):
    """Writes the paths' times, and the ratio of each to those before it.

    Args:
        job: the arguments of `in_fresh_process`, which runs `in_turns`.
    """
    seconds = in_fresh_process(*job)
    if "failed" in seconds:
        sys.stdout.write(f"{title}: {seconds['failed']}\n")
        return
    for i, (path, times) in enumerate(seconds.items()):
        texts = [f"{path} {1e3 * statistics.median(times):.1f} ms"]
        for other in list(seconds)[:i]:
            texts.append(f"{_ratio(times, seconds[other])} of {other}")
        sys.stdout.write(f"{title}: {', '.join(texts)}\n")
    sys.stdout.flush()


def _ratio(times, others):
    """Median of the ratios turn by turn, and the range of 95 % of bootstrapped ones."""
    draw = random.Random(0)
    ratios = [a / b for a, b in zip(times, others, strict=True)]
    medians = sorted(
        statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(2000)
    )
    middle = statistics.median(ratios)
    return f"{middle:.3f} ({medians[50]:.3f} to {medians[-51]:.3f})"


class Table:
    """A table written line by line, each path beside the floor before it.

    Args:
        columns: dict of the first columns' heads to their widths; text is set left.

    Attributes:
        failures: the number of lines that hold a failure.
    """

    def __init__(self, columns):
        self._names = "".join(f"{{:<{width}}} " for width in columns.values())
        self._floor = None
        self.failures = 0
        self._write((*columns, "ms", "range", "peak MB", "of floor"))

    def add(self, names, path, numbers):
        """Writes one line; the lines after the `path` "floor" are compared with it."""
        failed = "failed" in numbers
        self.failures += failed and numbers != NOT_INSTALLED
        if path == "floor":
            self._floor = None if failed else median(numbers)
        ratio = ""
        if self._floor and not failed:
            ratio = f"{median(numbers) / self._floor:.2f}"
        self._write((*names, *cells(numbers), ratio))

    def start(self):
        """Forgets the floor: what follows has one of its own."""
        self._floor = None

    def _write(self, texts):
        line = self._names + "{:>8} {:>15} {:>9} {:>9}\n"
        sys.stdout.write(line.format(*texts))
        sys.stdout.flush()


def cells(numbers):
    """Median, range of the middle 80 %, and peak memory, as text."""
    if "failed" in numbers:
        return numbers["failed"], "", ""
    times = sorted(1e3 * t for t in numbers["seconds"])
    tenth = len(times) // 10
    span = f"{times[tenth]:.0f} to {times[-1 - tenth]:.0f}"
    return f"{median(numbers):.1f}", span, f"{numbers['megabytes']:.0f}"


def median(numbers):
    """Milliseconds."""
    times = sorted(numbers["seconds"])
    return 1e3 * times[len(times) // 2]


def held_memory():
    """Megabytes held now, on the accelerator or, without one, by the process."""
    gc.collect()
    accelerator = _accelerator()
    if accelerator is not None:
        return accelerator.held() / 2**20
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return _status("VmRSS") - _status("RssFile")


def peak_memory(step):
    """Megabytes held at the peak of a run of `step`."""
    held_memory()  # gives back what is free
    accelerator = _accelerator()
    if accelerator is not None:
        accelerator.reset()
        step()
        return accelerator.peak() / 2**20
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # starts the peak anew
    step()
    return _status("VmHWM") - _status("RssFile")


def _status(name):
    with open("/proc/self/status") as file:
        return next(int(x.split()[1]) / 1024 for x in file if x.startswith(name))


def _accelerator():
    """`held`, `reset` and `peak` of the accelerator's memory; `None` without one."""
    backends = {"jax": _jax, "torch": _torch, "tensorflow": _tensorflow}
    return backends[os.environ["KERAS_BACKEND"]]()


def _jax():
    import jax

    device = jax.devices()[0]
    if device.platform == "cpu":
        return None
    return types.SimpleNamespace(
        held=lambda: device.memory_stats()["bytes_in_use"],
        reset=lambda: None,  # JAX keeps one peak for the whole process
        peak=lambda: device.memory_stats()["peak_bytes_in_use"],
    )


def _torch():
    import torch

    if not torch.cuda.is_available():
        return None
    return types.SimpleNamespace(
        held=torch.cuda.memory_allocated,
        reset=torch.cuda.reset_peak_memory_stats,
        peak=torch.cuda.max_memory_allocated,
    )


def _tensorflow():
    import tensorflow as tf

    if not tf.config.list_logical_devices("GPU"):
        return None
    info = tf.config.experimental
    return types.SimpleNamespace(
        held=lambda: info.get_memory_info("GPU:0")["current"],
        reset=lambda: info.reset_memory_stats("GPU:0"),
        peak=lambda: info.get_memory_info("GPU:0")["peak"],
    )
