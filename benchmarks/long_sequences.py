"""Memory of a step by positions, pictures and answers: what the energies add.

    python benchmarks/long_sequences.py                   # every backend and path
    python benchmarks/long_sequences.py --backends torch --vary pictures

A Gemma-3-shaped pair of one decoder block of width 64 with four attention heads, and
one record a step. One of three sizes is varied, the others stay at 4,096 positions, one
picture of 256 tokens and 64 answers. `floor` is what every way of distilling has, as in
`train_step.py`: both backbones, the heads on the answer rows, and the optimizer, by
keras-hub, whose attention grows with the square of the positions. The others are a
distiller with one scalar beta for each energy:

- `cosine`: `CosineProbsEnergy`, at the answers;
- `attention`: `AttentionEnergy` beside it, the answers' attention to the pictures;
- `saliency`: `ImageTokenEnergy` beside it, at all image tokens, weighted by the
  prompt's attention;
- `image attention`: `ImageAttentionEnergy` beside it, within each picture.

Each runs in fresh processes, which take turns over `--rounds`. The table gives the peak
of memory of a step in MB above models and batch, what an energy adds to that of
`cosine`, and the slopes of both: the power of the size by which they grow from one line
of a path to its next. 1 is linear, 2 the square. Of less than `--least` MB there is
none: one process differs from the next by so much.
"""

import argparse
import math
import sys

import numpy as np
from measure import in_rounds, median, report
from train_step import IMAGE_TOKENS, floor, gemma3

SERIES = {
    "positions": (1024, 2048, 4096),
    "pictures": (1, 2, 4, 8),
    "answers": (64, 256, 1024),
}
DEFAULTS = {"positions": 4096, "pictures": 1, "answers": 64}
PATHS = ("floor", "cosine", "attention", "saliency", "image attention")
CLASSES = 8192


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", default=["torch", "jax", "tensorflow"])
    parser.add_argument("--vary", nargs="+", default=list(SERIES), choices=SERIES)
    parser.add_argument("--paths", nargs="+", default=PATHS, choices=PATHS)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--least", type=float, default=60.0, help="MB")
    parser.add_argument("--worker", choices=PATHS)
    parser.add_argument("--sizes", nargs=3, type=int, help=", ".join(DEFAULTS))
    return parser.parse_args()


def main():
    options = arguments()
    if options.worker:
        report(make_step(options.worker, *options.sizes), options.repeats)
        return
    measured = {}
    write("backend", "varied", "size", "path", "ms", "MB", "slope", "added", "slope")
    for backend in options.backends:
        for name in options.vary:
            before = {}
            for size in SERIES[name]:
                sizes = tuple({**DEFAULTS, name: size}.values())
                found = run(options, backend, sizes, measured)
                before = write_size(options, (backend, name, size), found, before)


def run(options, backend, sizes, measured):
    """What each path reports; sizes that two series share are measured once."""
    if (backend, sizes) not in measured:
        shared = ["--repeats", options.repeats, "--sizes", *sizes]
        jobs = {
            path: (__file__, ["--worker", path, *shared], backend)
            for path in options.paths
        }
        measured[backend, sizes] = in_rounds(options.rounds, jobs)
    return measured[backend, sizes]


def write_size(options, names, found, before):
    """Writes the lines of one size; returns size and memory of each path.

    Args:
        names: backend, name and value of the size that is varied.
        found: what `run` returned.
        before: what this function returned for the size before.
    """
    base, now = found.get("cosine", {}).get("megabytes"), {}
    for path, numbers in found.items():
        if "failed" in numbers:
            write(*names, path, numbers["failed"], *4 * [""])
            continue
        now[path] = names[2], numbers["megabytes"]
        now["added", path] = names[2], added(path, numbers["megabytes"], base)
        texts = [f"{median(numbers):.0f}"]
        for key in (path, ("added", path)):
            memory = now[key][1]
            texts.append("" if memory is None else f"{memory:.0f}")
            texts.append(slope_of(before.get(key), now[key], options.least))
        write(*names, path, *texts)
    return now


def added(path, memory, base):
    """What an energy takes beside `cosine`; `None` for what is no energy beside it."""
    return None if base is None or path in ("floor", "cosine") else memory - base


def slope_of(before, now, least):
    if before is None or None in (before[1], now[1]):
        return ""
    if min(before[1], now[1]) < least:
        return ""
    return f"{math.log(now[1] / before[1]) / math.log(now[0] / before[0]):.2f}"


def write(*texts):
    line = "{:<11} {:<10} {:>6} {:<16} {:>7} {:>7} {:>6} {:>7} {:>6}\n"
    sys.stdout.write(line.format(*texts))
    sys.stdout.flush()


def make_step(path, positions, pictures, answers):
    """A function that trains for a step."""
    import keras

    keras.utils.set_random_seed(0)
    teacher, student = gemma3(CLASSES, 64, 1), gemma3(CLASSES, 64, 1)
    student.backbone.vision_encoder.get_layer("image_encoder").trainable = False
    x, y = batch(positions, pictures, answers)
    if path == "floor":
        model, _ = floor(teacher, student, (1, CLASSES, answers))
    else:
        model = distiller(path, teacher, student)
    return lambda: model.train_on_batch(x, y)


def distiller(path, teacher, student):
    import keras

    import keras_betakd as kd

    beside = {
        "cosine": lambda: [],
        "attention": lambda: [kd.AttentionEnergy()],
        "saliency": lambda: [
            kd.ImageTokenEnergy(kd.ForwardKLEnergy(), weights="saliency")
        ],
        "image attention": lambda: [kd.ImageAttentionEnergy([0], [0])],
    }
    energies = [kd.CosineProbsEnergy(), *beside[path]()]
    model = kd.BetaKDDistiller(teacher, student, energies, kd.TaskBeta())
    model.compile(optimizer=keras.optimizers.Adam(2e-5))
    return model


def batch(positions, pictures, answers):
    """Pictures, then text, whose last tokens are the answer."""
    rng = np.random.default_rng(0)
    tokens = np.arange(pictures * IMAGE_TOKENS)
    x = {
        "token_ids": rng.integers(4, CLASSES, (1, positions)),
        "padding_mask": np.ones((1, positions), bool),
        "images": rng.uniform(-1, 1, (1, pictures, 64, 64, 3)).astype("float32"),
        "vision_indices": tokens[None],
        "vision_mask": np.arange(positions)[None] < tokens.size,
    }
    rows = np.arange(positions - answers - 1, positions - 1)[None]
    y = x["token_ids"][:, positions - answers :]
    both = {"student": x, "teacher": x, "sample_weight": np.ones(y.shape, "float32")}
    return {**both, "student_positions": rows, "teacher_positions": rows}, y


if __name__ == "__main__":
    main()
