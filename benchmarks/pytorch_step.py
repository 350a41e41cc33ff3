"""Where a training step goes on PyTorch, where Keras runs one operation after another.

    python benchmarks/pytorch_step.py                    # CPU time, one thread
    python benchmarks/pytorch_step.py --wall --threads 2

The pair and the paths of `train_step.py`: the floor is what every way of distilling
computes. Both run in one process and take turns in it. The time of each part is that of
its functions without the parts within them; the table gives medians over `--turns` of
`--steps` steps, in milliseconds a step. CPU time of one thread is hardly moved by what
else the machine does. On a GPU use `--wall`: it waits for the device at every part,
which makes a step slower than it is, and the parts comparable.
"""

import argparse
import collections
import contextlib
import functools
import statistics
import sys
import time

import train_step
from measure import hand_over, in_fresh_process

SHARED = (
    *("teacher's backbone", "student's backbone", "heads, backward pass"),
    *("optimizer", "loop of Keras"),
)
OWN = (
    *("answer rows, tiles", "weights, betas, total", "checks for NaN", "metrics"),
    "cross-entropy, energy",
)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", default="fixed", choices=["fixed", "instance"])
    parser.add_argument("--vocabulary", nargs=1, type=int, default=[32000])
    for name, default in {"teacher": (256, 3), "student": (128, 1)}.items():
        parser.add_argument(
            f"--{name}", nargs=2, type=int, default=default, metavar=("WIDTH", "LAYERS")
        )
    numbers = {"batch": 2, "answers": 8, "steps": 8, "turns": 20, "threads": 1}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--heads", type=int, default=4, help="of queries, in a layer")
    parser.add_argument("--dtype", default="float32", help="policy of both models")
    parser.add_argument("--wall", action="store_true", help="elapsed time, not CPU's")
    parser.add_argument("--worker", action="store_true")
    return parser.parse_args()


def main():
    options = arguments()
    if options.worker:
        hand_over(measured(options))
        return
    found = in_fresh_process(__file__, [*sys.argv[1:], "--worker"], "torch")
    if "failed" in found:
        sys.exit(found["failed"])
    write_table(options.path, found["floor"], found[options.path])


def write_table(path, floor, ours):
    line = "{:<24} {:>8} {:>9} {:>9}\n".format
    sys.stdout.write(line("part", "floor", path, "of floor"))
    whole = sum(floor.values())
    for part in (*SHARED, *OWN):
        times = floor.get(part, 0.0), ours.get(part, 0.0)
        share = f"{(times[1] - times[0]) / whole:+.1%}"
        sys.stdout.write(line(part, *(f"{t:.2f}" for t in times), share))
    times = whole, sum(ours.values())
    ratio = f"{times[1] / times[0]:.3f}"
    sys.stdout.write(line("step", *(f"{t:.1f}" for t in times), ratio))
    # The loss itself is what a user asks for, and in the floor no line of its own.
    extra = sum(ours[part] - floor.get(part, 0.0) for part in OWN[:-1])
    sys.stdout.write(f"all but the loss itself: {extra / whole:.1%} of the floor\n")


def measured(options):
    """Dict by path of the milliseconds of each part of a step."""
    import torch

    torch.set_num_threads(options.threads)
    sections = Sections(options.wall)
    runs = {path: prepared(options, path) for path in ("floor", options.path)}
    for _, run in runs.values():
        run()
    watch_models(sections, [model for model, _ in runs.values()])
    watch_library(sections)
    times = {path: collections.defaultdict(list) for path in runs}
    for _ in range(options.turns):
        for path, (_, run) in runs.items():
            sections.seconds.clear()
            with sections.of("loop of Keras"):
                run()
            for part, seconds in sections.seconds.items():
                times[path][part].append(1e3 * seconds / options.steps)
    return {
        path: {part: statistics.median(values) for part, values in parts.items()}
        for path, parts in times.items()
    }


def prepared(options, path):
    """`(model, run)`, a compiled model and a function that trains it."""
    model, data = train_step.make_model(options, path)
    return model, lambda: model.fit(data, verbose=0)


class Sections:
    """Adds up the seconds of parts of a program, each without the parts within it.

    Args:
        wall: whether elapsed time is taken, and not the CPU time of the process.
    """

    def __init__(self, wall):
        import torch

        self._waits = wall and torch.cuda.is_available()
        self._clock = time.perf_counter if wall else time.process_time
        self._open, self._since = [], 0.0
        self.seconds = collections.Counter()

    def _turn(self):
        if self._waits:
            import torch

            torch.cuda.synchronize()
        now = self._clock()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    @contextlib.contextmanager
    def of(self, part):
        """A context whose time is that of a part."""
        self._turn()
        self._open.append(part)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def watch(self, part, owner, *names):
        """Makes functions of a module or class count as a part.

        Args:
            part: its name, or a function that returns it for the first argument.
        """
        for name in names:
            setattr(owner, name, self._timed(part, getattr(owner, name)))

    def _timed(self, part, function):
        @functools.wraps(function)
        def timed(*args, **kwargs):
            with self.of(part(args[0]) if callable(part) else part):
                return function(*args, **kwargs)

        return timed


def watch_models(sections, models):
    """Counts the parts that every model has.

    Args:
        models: the compiled models, the floor first.
    """
    parts = {}
    for model in models:
        parts[id(model.teacher.backbone)] = "teacher's backbone"
        parts[id(model.student.backbone)] = "student's backbone"
        sections.watch("metrics", type(model), "compute_metrics")
    floor = models[0]
    backbone = type(floor.student.backbone)
    sections.watch(lambda called: parts[id(called)], backbone, "__call__")
    sections.watch("heads, backward pass", type(floor), "_logits", "compute_loss")
    # Of one class in all of them.
    sections.watch("optimizer", type(floor.optimizer), "apply")


def watch_library(sections):
    """Counts what is not in the floor."""
    import torch

    from keras_betakd.distillation import distiller, finite_steps_optimizer, forward
    from keras_betakd.distillation.metrics import Trackers
    from keras_betakd.head_loss import fused, terms, tiles
    from keras_betakd.models import heads

    own, model = sections.watch, distiller.BetaKDDistiller
    products, tile = "heads, backward pass", tiles.HeadTiles
    own(products, torch.Tensor, "backward")
    own(products, heads.HeadMatrix, "without_bias")
    own(products, heads.LMHead, "__call__")
    own(products, tile, "_gradients")
    own(products, fused._Product, "scaled")
    own("cross-entropy, energy", tile, "_values_and_gradient")
    own("cross-entropy, energy", forward, "uncertainty_of")
    own("answer rows, tiles", model, "call", "_terms")
    own("answer rows, tiles", terms, "fused_losses")
    own("weights, betas, total", forward.ForwardPass, "weighted")
    own("weights, betas, total", model, "compute_loss")
    checks = "checks for NaN"
    own(checks, forward, "finite_rows", "zero_nonfinite_rows")
    own(checks, model, "_note_nonfinite")
    own(checks, finite_steps_optimizer, "all_finite")
    own("metrics", Trackers, "update")


if __name__ == "__main__":
    main()
