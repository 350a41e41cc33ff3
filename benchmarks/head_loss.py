"""LM head + distillation loss, forward and backward: ours beside the floor and peers.

    python benchmarks/head_loss.py                       # every path and loss
    python benchmarks/head_loss.py --paths floor ours --losses kl --backends jax

The floor is the bare matrix products of the supervised rows, forward and backward;
`dense` is this library with `fused=False`, `remat` the same on tiles of the supervised
rows that the backward pass computes once more. `compiled`, which runs only where it is
named, is this library under `torch.compile`, which first takes minutes. Each path runs
in fresh processes, which take turns over `--rounds`; the table gives the median of all
runs, `--repeats` in each process, the range of the middle 80 %, and the peak of memory
above what the inputs and the compiled program take (TensorFlow alone cannot compile
beforehand: there what its compiler keeps is counted). Peers that are not installed are
named and left out: `pip install --no-deps liger-kernel trl` (TRL also needs
transformers).

One process is easily 10 % slower than the next. What differs by less shows only where
the paths share one process and take turns in it, each on several copies of the data:

    python benchmarks/head_loss.py --together 2 --paths floor ours
"""

import argparse
import functools
import importlib.util
import sys

from measure import (
    NOT_INSTALLED,
    Table,
    compare,
    hand_over,
    in_rounds,
    in_turns,
    report,
)

PATHS = {  # path -> backends it exists on
    "floor": ("jax", "torch", "tensorflow"),
    "ours": ("jax", "torch", "tensorflow"),
    "compiled": ("torch",),
    "remat": ("jax", "torch", "tensorflow"),
    "dense": ("jax", "torch", "tensorflow"),
    "keras": ("jax", "torch", "tensorflow"),
    "trl": ("torch",),
    "liger": ("torch",),
}
PACKAGES = {"trl": "trl", "liger": "liger_kernel"}
LOSSES = ("kl", "js", "cosine")
PEERS = {("keras", "kl"), ("trl", "kl"), ("trl", "js"), ("liger", "js")}
PEERS |= {("liger", "cosine"), ("liger", "kl")}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    usual = [path for path in PATHS if path != "compiled"]
    parser.add_argument("--paths", nargs="+", default=usual, choices=PATHS)
    parser.add_argument("--losses", nargs="+", default=LOSSES, choices=LOSSES)
    parser.add_argument("--backends", nargs="+", default=["jax", "torch", "tensorflow"])
    for name, default in {
        "batch": 2,
        "length": 512,
        "student-width": 256,
        "teacher-width": 512,
        "vocabulary": 16384,
        "energies": 1,
        "rounds": 3,
        "repeats": 9,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--supervised", type=float, default=0.25)
    parser.add_argument("--dtype", default="float32", help="of rows and heads")
    parser.add_argument(
        "--together",
        type=int,
        default=0,
        metavar="COPIES",
        help="compare times in one process, on so many copies of the data",
    )
    parser.add_argument("--turns", type=int, default=60, help="of --together")
    parser.add_argument("--worker", nargs=2, metavar=("PATH", "LOSS"))
    return parser.parse_args()


def main():
    options = arguments()
    if options.worker and options.together:
        take_turns(options, options.worker[0])
    elif options.worker:
        work(options)
    elif options.together:
        for backend in options.backends:
            job = [*sys.argv[1:], "--worker", backend, "all"]
            compare(backend, (__file__, job, backend))
    else:
        sys.exit(compare_processes(options))


def work(options):
    package = PACKAGES.get(options.worker[0])
    if package and importlib.util.find_spec(package) is None:
        hand_over(NOT_INSTALLED)
    else:
        report(make_step(options, *options.worker), options.repeats)


def take_turns(options, backend):
    makers = {
        " ".join(pair).removesuffix(" -"): functools.partial(make_step, options, *pair)
        for pair in _pairs(options)
        if backend in PATHS[pair[0]]
    }
    in_turns(makers, options.together, options.turns)


def compare_processes(options):
    table = Table({"backend": 11, "path": 6, "loss": 7})
    for backend in options.backends:
        table.start()
        jobs = {
            pair: (__file__, [*sys.argv[1:], "--worker", *pair], backend)
            for pair in _pairs(options)
            if backend in PATHS[pair[0]]
        }
        for (path, loss), numbers in in_rounds(options.rounds, jobs).items():
            table.add((backend, path, loss), path, numbers)
    return table.failures


def _pairs(options):
    for path in options.paths:
        if path == "floor":
            yield path, "-"
            continue
        for loss in options.losses:
            if path in ("ours", "compiled", "remat", "dense") or (path, loss) in PEERS:
                yield path, loss


def make_step(options, path, loss):
    import keras
    import numpy as np

    rng = np.random.default_rng(0)
    rows, classes = options.batch * options.length, options.vocabulary
    narrow, wide = options.student_width, options.teacher_width
    seed = keras.random.SeedGenerator(0)

    def normal(*shape, scale=1.0):
        return keras.random.normal(shape, 0.0, scale, options.dtype, seed)

    hidden, kernel = normal(rows, narrow), normal(classes, narrow, scale=0.1)
    models = normal(rows, wide), normal(classes, wide, scale=0.07)
    labels = rng.integers(0, classes, size=rows).astype("int32")
    chosen = rng.choice(rows, int(options.supervised * rows), replace=False)
    weights = np.zeros(rows, "float32")
    weights[np.sort(chosen)] = 1 / len(chosen)
    build = {
        "floor": floor,
        "ours": ours,
        "compiled": compiled,
        "remat": remat,
        "dense": dense,
        "keras": keras_kl,
        "trl": trl,
        "liger": liger,
    }

    def function_of(*models):
        return build[path](loss, options.energies, *models, labels, weights)

    differentiate = path != "floor"
    step = BACKENDS[keras.backend.backend()]
    return step(function_of, models, hidden, kernel, differentiate)


def jax_step(function_of, models, hidden, kernel, differentiate):
    import jax

    # The teacher is an argument: as a constant it would be part of the program.
    def function(hidden, kernel, *models):
        return function_of(*models)(hidden, kernel)

    if differentiate:
        function = jax.value_and_grad(function, (0, 1))
    function = jax.jit(function).lower(hidden, kernel, *models).compile()
    return lambda: jax.block_until_ready(function(hidden, kernel, *models))


def torch_step(function_of, models, hidden, kernel, differentiate):
    import torch

    function = function_of(*models)

    def products():
        with torch.no_grad():
            return function(hidden, kernel)

    def gradients():
        function(hidden.requires_grad_(), kernel.requires_grad_()).backward()
        hidden.grad = kernel.grad = None

    def step():
        gradients() if differentiate else products()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return step


def tensorflow_step(function_of, models, hidden, kernel, differentiate):
    import tensorflow as tf

    function = function_of(*models)

    @tf.function(jit_compile=True)
    def step():
        if not differentiate:
            return function(hidden, kernel)
        with tf.GradientTape() as tape:
            tape.watch([hidden, kernel])
            total = function(hidden, kernel)
        return tape.gradient(total, [hidden, kernel])

    return step


BACKENDS = {"jax": jax_step, "torch": torch_step, "tensorflow": tensorflow_step}


def floor(loss, count, teacher, teacher_kernel, labels, weights):
    from keras import ops

    chosen = ops.convert_to_tensor(weights.nonzero()[0].astype("int32"))

    def function(hidden, kernel):
        rows = ops.take(hidden, chosen, axis=0)
        teacher_rows = ops.take(teacher, chosen, axis=0)
        logits = ops.matmul(rows, ops.transpose(kernel))
        return (
            ops.matmul(teacher_rows, ops.transpose(teacher_kernel)),
            ops.matmul(logits, kernel),
            ops.matmul(ops.transpose(logits), rows),
        )

    return function


def energies_of(loss, count):
    """`count` energies, `loss` first."""
    import keras_betakd as kd

    energies = {
        "kl": kd.ForwardKLEnergy(),
        "js": kd.JensenShannonEnergy(),
        "cosine": kd.CosineProbsEnergy(),
        "rkl": kd.ReverseKLEnergy(),
        "tvd": kd.TotalVariationEnergy(),
        "mse": kd.MSEProbsEnergy(),
        "skew_kl": kd.SkewForwardKLEnergy(),
        "skew_rkl": kd.SkewReverseKLEnergy(),
    }
    names = [loss, *(name for name in energies if name != loss)][:count]
    return {name: energies[name] for name in names}


def ours(loss, count, teacher, teacher_kernel, labels, weights):
    from keras import ops

    from keras_betakd.head_loss.fused import fused_head_loss

    energies, labels = energies_of(loss, count), ops.convert_to_tensor(labels)
    coefficients = ops.stack([ops.convert_to_tensor(weights)] * (1 + len(energies)))

    def function(hidden, kernel):
        return fused_head_loss(
            hidden,
            kernel,
            teacher,
            teacher_kernel,
            labels,
            coefficients,
            energies,
        ).total

    return function


def compiled(*arguments):
    import torch

    return torch.compile(ours(*arguments))


def dense(loss, count, teacher, teacher_kernel, labels, weights):
    import keras
    from keras import ops

    from keras_betakd.head_loss.terms import (
        AnswerRows,
        TeacherHead,
        Weighting,
        dense_terms,
    )

    task_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    energies = energies_of(loss, count)
    log_beta = dict.fromkeys(energies, ops.convert_to_tensor(0.0))

    def function(hidden, kernel):
        logits = ops.matmul(teacher, ops.transpose(teacher_kernel))[None]
        answer = AnswerRows(
            ops.matmul(hidden, ops.transpose(kernel))[None],
            {"teacher": logits},
            ops.convert_to_tensor(labels)[None],
        )
        rows = ops.convert_to_tensor(weights)[None]
        weighting = Weighting(
            dict.fromkeys(("answers", "task", *energies), rows), log_beta
        )
        heads = {"teacher": TeacherHead(None, None, energies)}
        return dense_terms(answer, weighting, heads, task_loss).total

    return function


def remat(loss, count, teacher, teacher_kernel, labels, weights):
    import keras
    from keras import ops

    from keras_betakd.head_loss.tiles import rows_per_tile

    whole = weights.nonzero()[0]
    size = rows_per_tile(*teacher_kernel.shape)
    tiles = [whole[i : i + size] for i in range(0, len(whole), size)]

    def function(hidden, kernel):
        total = 0.0
        for tile in tiles:
            rows = ops.take(teacher, tile, axis=0), teacher_kernel
            tail = dense(loss, count, *rows, labels[tile], weights[tile])
            total = total + keras.remat(tail)(ops.take(hidden, tile, axis=0), kernel)
        return total

    return function


def keras_kl(loss, count, teacher, teacher_kernel, labels, weights):
    import keras
    from keras import ops

    distillation = keras.distillation.LogitsDistillation(
        loss=keras.losses.KLDivergence()
    )
    entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def function(hidden, kernel):
        logits = ops.matmul(hidden, ops.transpose(kernel))
        teacher_logits = ops.matmul(teacher, ops.transpose(teacher_kernel))
        energy = distillation.compute_loss(teacher_logits, logits)
        return energy + entropy(labels, logits, sample_weight=weights)

    return function


def ignored_labels(labels, weights, device):
    """Labels for PyTorch, -100 where the weight is 0."""
    import torch

    labels = torch.from_numpy(labels).long()
    labels[torch.from_numpy(weights) == 0] = -100
    return labels.to(device)


def trl(loss, count, teacher, teacher_kernel, labels, weights):
    import torch
    from trl.experimental.gkd import GKDTrainer

    ignored = ignored_labels(labels, weights, teacher.device)
    beta = {"kl": 0.0, "js": 0.5}[loss]

    def function(hidden, kernel):
        logits, teacher_logits = hidden @ kernel.T, teacher @ teacher_kernel.T
        energy = GKDTrainer.generalized_jsd_loss(
            logits[None], teacher_logits[None], labels=ignored[None], beta=beta
        )
        return energy + torch.nn.functional.cross_entropy(logits, ignored)

    return function


def liger(loss, count, teacher, teacher_kernel, labels, weights):
    from liger_kernel.chunked_loss.cosine_similarity_loss import (
        LigerFusedLinearCosineSimilarityLoss,
    )
    from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDLoss

    target = ignored_labels(labels, weights, teacher.device)
    compiled = teacher.device.type != "cpu"  # Liger's default
    if loss == "cosine":
        fused = LigerFusedLinearCosineSimilarityLoss(compiled=compiled)
    else:
        beta = {"kl": 0.0, "js": 0.5}[loss]
        fused = LigerFusedLinearJSDLoss(beta=beta, compiled=compiled)

    def function(hidden, kernel):
        result = fused(hidden, kernel, teacher, teacher_kernel, target)
        return result[0] if isinstance(result, tuple) else result

    return function


if __name__ == "__main__":
    main()
