"""Peak memory of a training step by sequence length: with `remat`, LoRA, a cache.

    python benchmarks/activations.py                  # every path and length
    python benchmarks/activations.py --backends jax --lengths 1024 4096

A text pair of Gemma 3's shape (keras-hub's classes): a teacher of width 128, a student
of 64, each of `--layers` decoder blocks with one attention head. One record a step, its
question and answer padded to the length. `full` trains all of the student, `lora` its
LoRA factors of rank 4; `+ remat` does so with `BetaKDDistiller(remat=True)`. In
`deep teacher` the teacher has four times as many blocks: what it held of each would
show. `cached` is `full` with a cache in the teacher's place.

Each path runs in fresh processes, which take turns over `--rounds`. The table gives the
median time of a step with the range of the middle 80 %, the peak of memory above what
models, optimizer and batch take, those of the models and the optimizer, and on JAX what
the forward pass keeps for the gradient.
"""

import argparse
import math
import sys
import tempfile

from measure import cells, in_rounds, report
from tiny_tokenizer import tokenizer_proto

PATHS = (
    *("full", "full + remat", "lora", "lora + remat"),
    *("deep teacher", "cached", "cached + remat"),
)
QUESTION, ANSWER = "what is the color of the large shape here?", "a small red square"
DATA = {"ids": ["0"], "prompts": [QUESTION], "responses": [ANSWER]}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--paths", nargs="+", default=PATHS, choices=PATHS)
    parser.add_argument("--backends", nargs="+", default=["torch", "jax", "tensorflow"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[1024, 4096, 8192])
    for name, default in {"layers": 4, "rounds": 3, "repeats": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--worker", choices=PATHS)
    return parser.parse_args()


def main():
    options = arguments()
    if options.worker:
        model, step = make_step(options)
        report(step, options.repeats, models=of_models(model), kept=kept(model))
        return
    heads = "backend", "length", "path", "ms", "range", "peak MB"
    write(*heads, "models MB", "kept MB")
    for backend in options.backends:
        for length in options.lengths:
            shared = ["--lengths", length, "--layers", options.layers]
            shared += ["--repeats", options.repeats]
            jobs = {
                path: (__file__, ["--worker", path, *shared], backend)
                for path in options.paths
            }
            for path, numbers in in_rounds(options.rounds, jobs).items():
                others = [numbers.get(name) for name in ("models", "kept")]
                others = ["" if x is None else f"{x:.1f}" for x in others]
                write(backend, length, path, *cells(numbers), *others)


def write(*texts):
    line = "{:<11} {:>6} {:<15} {:>9} {:>17} {:>9} {:>10} {:>9}\n"
    sys.stdout.write(line.format(*texts))
    sys.stdout.flush()


def make_step(options):
    """A distiller, and a function that trains it for a step."""
    import keras

    import keras_betakd as kd

    keras.utils.set_random_seed(0)
    path, length = options.worker, options.lengths[0]
    depth = options.layers * (4 if path == "deep teacher" else 1)
    teacher = gemma3(128, depth, length)
    student = gemma3(64, options.layers, length)
    if path.startswith("lora"):
        student.backbone.enable_lora(4)
    model = distiller(teacher, student, remat=path.endswith("remat"))
    if path.startswith("cached"):
        folder = tempfile.TemporaryDirectory()
        cached = kd.cache_teacher(model, DATA, folder.name, verbose=0)
        del teacher, model
        model = distiller(cached, student, remat=path.endswith("remat"))
        model.folder = folder  # removed with the model
    return model, lambda: model.fit(DATA, verbose=0)


def distiller(teacher, student, remat):
    import keras

    import keras_betakd as kd

    pair = teacher.preprocessor, student.preprocessor
    model = kd.BetaKDDistiller(
        teacher,
        student,
        kd.CosineProbsEnergy(),
        kd.InstanceBeta(),
        preprocessor=kd.DistillationPreprocessor(*pair, max_response_length=16),
        remat=remat,
    )
    model.compile(optimizer=keras.optimizers.Adam(2e-5))
    return model


def gemma3(width, layers, length):
    import keras_hub

    backbone = keras_hub.models.Gemma3Backbone(
        vocabulary_size=8192,
        image_size=64,
        num_layers=layers,
        num_query_heads=1,
        num_key_value_heads=1,
        hidden_dim=width,
        intermediate_dim=4 * width,
        head_dim=64,
    )
    preprocessor = keras_hub.models.Gemma3CausalLMPreprocessor(
        tokenizer=keras_hub.models.Gemma3Tokenizer(
            proto=tokenizer_proto((QUESTION, ANSWER))
        ),
        image_converter=None,
        sequence_length=length,
    )
    return keras_hub.models.Gemma3CausalLM(preprocessor, backbone)


def of_models(model):
    """Megabytes of the variables of teacher, student and optimizer."""
    models = model.teacher, model.student, model.optimizer
    return megabytes(v for part in models for v in part.variables)


def kept(model):
    """On JAX, the megabytes that a forward pass keeps for the gradient.

    That is what JAX asks of XLA, which on a CPU drops the barriers that hold a second
    run back until its gradient is due; `None` elsewhere.
    """
    import keras

    if keras.backend.backend() != "jax":
        return None
    import jax

    x, _, _ = model.preprocessor(DATA)
    others = [v.value for v in model.non_trainable_variables]

    def pull_back(trained):
        def rows(trained):
            found, _ = model.stateless_call(trained, others, x, training=True)
            return found.student

        return jax.vjp(rows, trained)[1]

    trained = [v.value for v in model.trainable_variables]
    return megabytes(jax.tree.leaves(jax.eval_shape(pull_back, trained)))


def megabytes(arrays):
    """Of variables or arrays, all of four bytes a number."""
    return sum(4 * math.prod(x.shape) for x in arrays) / 2**20


if __name__ == "__main__":
    main()
