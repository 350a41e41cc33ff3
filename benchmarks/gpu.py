"""Head and loss at a large model's sizes, and a step of a small pair, on a GPU.

    bash benchmarks/gpu.sh           # makes environments, and calls this
    python benchmarks/gpu.py         # in this environment
    python benchmarks/gpu.py --toy   # tiny sizes, a CPU will do

Every line is a fresh process of `head_loss.py` or `train_step.py` (read there what the
paths are), beside the floor of its group: the bare matrix products, or both backbones
with them. A line that fails says why; the others are measured all the same, and the
exit status is 1. Liger, if it is not installed, is no failure.
"""

import argparse
import pathlib
import sys

from measure import Table, hand_over, in_fresh_process

HERE = pathlib.Path(__file__).parent
BACKENDS = ("torch", "jax")
PACKAGES = ("torch", "jax", "keras", "keras-hub", "liger-kernel")
SIZES = {
    "full": {
        "head": {"batch": 8, "length": 1024, "vocabulary": 128256}
        | {"teacher-width": 4096, "student-width": 2048},
        # 1.1 and 0.3 billion parameters.
        "step": {"vocabulary": 128256, "teacher": "2048 16", "student": "1024 12"}
        | {"heads": 16, "batch": 8, "answers": 32},
    },
    "toy": {
        "head": {"batch": 2, "length": 64, "vocabulary": 512}
        | {"teacher-width": 64, "student-width": 32},
        "step": {"vocabulary": 512, "teacher": "64 1", "student": "32 1"}
        | {"heads": 2, "batch": 1, "answers": 8},
    },
}
# Of the head: path, loss. The published figure of Liger is of its Jensen-Shannon loss.
HEADS = (("floor", "-"), ("ours", "js"), ("dense", "js"), ("liger", "js"))
STEPS = ("floor", "fixed", "instance")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="tiny sizes, on any device")
    parser.add_argument("--backends", nargs="+", default=BACKENDS, choices=BACKENDS)
    for backend in BACKENDS:
        python = f"the Python that has {backend} and this library"
        parser.add_argument(f"--{backend}", default=sys.executable, help=python)
    parser.add_argument("--limit", type=int, default=150, help="seconds of a process")
    parser.add_argument("--worker", action="store_true")
    return parser.parse_args()


def main():
    options = arguments()
    if options.worker:
        hand_over(environment())
        return
    size = SIZES["toy" if options.toy else "full"]
    lost = 0
    for backend in options.backends:
        python = getattr(options, backend)
        found = in_fresh_process(__file__, ["--worker"], backend, python, options.limit)
        if "failed" in found or not (found["gpu"] or options.toy):
            reason = found.get("failed", f"no GPU, but {found.get('device')}")
            write(f"\n{backend}: {reason}")
            lost += 1
            continue
        write(f"\n{backend}, {found['device']}; {found['versions']}")
        lost += measure_backend(backend, python, size, options.limit)
    sys.exit(1 if lost else 0)


def measure_backend(backend, python, size, limit):
    """Writes the table of a backend; returns how many lines failed."""
    table = Table({"what": 22, "path": 9})
    for group in groups(backend, size):
        table.start()
        for what, path, job in group:
            found = in_fresh_process(*job, backend, python, limit)
            table.add((what, path), path, found)
    return table.failures


def groups(backend, size):
    """Lists of `(what, path, job)` with one floor each, as `Table.add` needs them."""
    for share in (1.0, 0.25):
        shared = as_options(size["head"], supervised=share, dtype="bfloat16", repeats=9)
        yield [
            (
                f"head, {share:.0%} of the rows",
                path,
                (HERE / "head_loss.py", [*shared, "--worker", path, loss]),
            )
            for path, loss in HEADS
            if path != "liger" or backend == "torch"
        ]
    shared = as_options(size["step"], dtype="bfloat16", steps=4, repeats=5)
    yield [
        ("step", path, (HERE / "train_step.py", [*shared, "--worker", path]))
        for path in STEPS
    ]


def as_options(*sizes, **more):
    """Dicts of numbers as options of a command line."""
    given = {k: v for numbers in (*sizes, more) for k, v in numbers.items()}
    pairs = ((f"--{name}", *str(value).split()) for name, value in given.items())
    return [text for pair in pairs for text in pair]


def environment():
    """Dict of the backend's device, whether that is a GPU, and of versions."""
    import importlib.metadata

    import keras

    if keras.backend.backend() == "jax":
        import jax

        found = jax.devices()[0]
        gpu, device = found.platform == "gpu", found.device_kind
    else:
        import torch

        gpu = torch.cuda.is_available()
        device = torch.cuda.get_device_name() if gpu else "cpu"
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"device": device, "gpu": gpu, "versions": ", ".join(versions)}


def write(line):
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
