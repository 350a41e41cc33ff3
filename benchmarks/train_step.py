"""A whole training step of a Gemma-3-shaped pair: ours beside the floor and others.

    python benchmarks/train_step.py                    # every path and vocabulary
    python benchmarks/train_step.py --backends jax --vocabulary 32000

An image of 256 tokens, a question of 56 and an answer of 8 (`--answers`). The floor is
the part that every way of distilling has: the teacher's backbone forward, the student's
forward and backward, both heads on the answer rows, and the optimizer. Every path is
trained by Keras' own `fit`; a run is `--steps` steps. Each path runs in fresh
processes, which take turns over `--rounds`; the table gives the median of all runs,
`--repeats` in each process, the range of the middle 80 %, and the peak of memory above
what models and batch take (what a compiler keeps is counted).

One process is easily 10 % slower than the next. What differs by less shows only where
the paths share one process and take turns in it, each by several models:

    python benchmarks/train_step.py --together 3 --paths floor fixed instance
"""

import argparse
import functools

import numpy as np
from measure import Table, compare, in_rounds, in_turns, report

IMAGE_TOKENS, QUESTION_TOKENS = 256, 56
PATHS = (
    *("floor", "fixed", "instance", "hidden_states"),
    *("dense", "keras", "finetune"),
)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--paths", nargs="+", default=PATHS, choices=PATHS)
    parser.add_argument("--backends", nargs="+", default=["jax", "torch", "tensorflow"])
    parser.add_argument("--vocabulary", nargs="+", type=int, default=[32000, 262144])
    for name, default in {"teacher": (256, 3), "student": (128, 1)}.items():
        parser.add_argument(
            f"--{name}", nargs=2, type=int, default=default, metavar=("WIDTH", "LAYERS")
        )
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--answers", type=int, default=8, help="tokens of an answer")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--together",
        type=int,
        default=0,
        metavar="MODELS",
        help="compare times in one process, by so many models of each path",
    )
    parser.add_argument("--turns", type=int, default=40, help="of --together")
    parser.add_argument("--worker", choices=[*PATHS, "together"])
    return parser.parse_args()


def main():
    options = arguments()
    if options.worker == "together":
        take_turns(options)
    elif options.worker:
        run = make_run(options, options.worker)
        report(run, options.repeats, options.steps)
    elif options.together:
        compare_together(options)
    else:
        compare_processes(options)


def take_turns(options):
    makers = {p: functools.partial(make_run, options, p) for p in options.paths}
    in_turns(makers, options.together, options.turns, options.steps)


def compare_together(options):
    for backend in options.backends:
        for classes in options.vocabulary:
            job = ["--worker", "together", "--together", options.together]
            job += ["--turns", options.turns, "--paths", *options.paths]
            job = __file__, [*job, *worker_options(options, classes)], backend
            compare(f"{backend}, V = {classes}", job)


def worker_options(options, classes):
    names = ["vocabulary", "batch", "steps", "repeats"]
    values = {**vars(options), "vocabulary": classes}
    shared = [text for name in names for text in (f"--{name}", values[name])]
    return [*shared, "--teacher", *options.teacher, "--student", *options.student]


def compare_processes(options):
    table = Table({"backend": 11, "V": 7, "path": 9})
    for backend in options.backends:
        for classes in options.vocabulary:
            table.start()
            shared = worker_options(options, classes)
            jobs = {
                path: (__file__, ["--worker", path, *shared], backend)
                for path in options.paths
            }
            for path, numbers in in_rounds(options.rounds, jobs).items():
                table.add((backend, classes, path), path, numbers)


def make_run(options, path):
    """A function that trains for `steps` steps."""
    import keras

    keras.utils.set_random_seed(0)
    classes = options.vocabulary[0]
    teacher = gemma3(classes, *options.teacher)
    student = gemma3(classes, *options.student)
    # As in the paper, and as the distiller does anyway.
    student.backbone.vision_encoder.get_layer("image_encoder").trainable = False
    sizes = options.batch, classes, options.answers
    model, batch = PREPARE[path](teacher, student, sizes)
    data = repeated(batch, options.steps)
    return lambda: model.fit(data, verbose=0)


def gemma3(classes, width, layers):
    import keras_hub

    vision_encoder = keras_hub.models.Gemma3VisionEncoder(
        image_size=64,
        patch_size=4,
        num_heads=2,
        hidden_dim=64,
        num_layers=2,
        intermediate_dim=128,
        output_dim=width,
        pool_size=1,
    )
    backbone = keras_hub.models.Gemma3Backbone(
        vocabulary_size=classes,
        image_size=64,
        num_layers=layers,
        num_query_heads=4,
        num_key_value_heads=1,
        hidden_dim=width,
        intermediate_dim=4 * width,
        head_dim=64,
        vision_encoder=vision_encoder,
    )
    return keras_hub.models.Gemma3CausalLM(None, backbone)


def inputs(batch, classes, answers):
    """What keras-hub's preprocessor gives: prompt with an image, then the answer."""
    rng = np.random.default_rng(0)
    tokens = IMAGE_TOKENS + QUESTION_TOKENS + answers
    image = np.arange(tokens) < IMAGE_TOKENS
    x = {
        "token_ids": rng.integers(4, classes, (batch, tokens)),
        "padding_mask": np.ones((batch, tokens), bool),
        "images": rng.uniform(-1, 1, (batch, 1, 64, 64, 3)).astype("float32"),
        "vision_indices": np.tile(np.arange(IMAGE_TOKENS), (batch, 1)),
        "vision_mask": np.tile(image, (batch, 1)),
    }
    positions = np.tile(np.arange(tokens - answers - 1, tokens - 1), (batch, 1))
    return x, positions


def whole_sequences(*sizes):
    """The form of ordinary Keras training: labels and weights of every position."""
    x, positions = inputs(*sizes)
    y = np.roll(x["token_ids"], -1, axis=1)
    weights = np.zeros(y.shape, "float32")
    np.put_along_axis(weights, positions, 1.0, axis=1)
    return x, y, weights


def answer_rows(*sizes):
    """The distiller's form: labels and weights of the answers alone."""
    x, positions = inputs(*sizes)
    y = np.take_along_axis(x["token_ids"], positions + 1, axis=1)
    weights = np.ones(y.shape, "float32")
    x = {"student": x, "teacher": x, "sample_weight": weights}
    return {**x, "student_positions": positions, "teacher_positions": positions}, y


def floor(teacher, student, sizes):
    import keras
    from keras import ops

    class Floor(keras.Model):
        def __init__(self):
            super().__init__()
            self.student, self.teacher = student, teacher
            teacher.trainable = False

        def call(self, x, training=None):
            return [self._logits(x, n, training) for n in ("student", "teacher")]

        def _logits(self, x, name, training):
            backbone = getattr(self, name).backbone
            hidden = backbone(x[name], training=training and name == "student")
            where = x[f"{name}_positions"][..., None]
            rows = ops.take_along_axis(hidden, where, axis=1)
            return backbone.token_embedding(rows, reverse=True)

        def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
            # Uses both logits, so that no compiler leaves anything out.
            return ops.sum(y_pred[0] * ops.stop_gradient(y_pred[1]))

        def zero_grad(self, set_to_none=True):
            # Keras on PyTorch takes the teacher's parameters, of the same paths.
            for variable in self.trainable_variables:
                variable.value.grad = None

    model = Floor()
    model.compile(optimizer=keras.optimizers.Adam(2e-5))
    return model, answer_rows(*sizes)


def ours(beta, **kwargs):
    def prepare(teacher, student, sizes):
        import keras_betakd as kd

        betas = {
            "fixed": kd.FixedBeta(),
            "instance": kd.InstanceBeta(),
            "hidden_states": kd.InstanceBeta(features="hidden_states", shrinkage=4.0),
        }
        model = kd.BetaKDDistiller(
            teacher, student, kd.CosineProbsEnergy(), betas[beta], **kwargs
        )
        model.compile()
        return model, answer_rows(*sizes)

    return prepare


def keras_distiller(teacher, student, sizes):
    import keras

    model = keras.distillation.Distiller(
        teacher,
        student,
        keras.distillation.LogitsDistillation(loss=keras.losses.KLDivergence()),
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(2e-5), loss=loss)
    return model, whole_sequences(*sizes)


def finetune(teacher, student, sizes):
    import keras

    # Around keras-hub's own `fit`, which takes raw text.
    model = keras.Model(student.input, student.output)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(2e-5), loss=loss)
    return model, whole_sequences(*sizes)


PREPARE = {
    "floor": floor,
    "fixed": ours("fixed"),
    "instance": ours("instance"),
    "hidden_states": ours("hidden_states"),
    "dense": ours("fixed", fused=False),
    "keras": keras_distiller,
    "finetune": finetune,
}


def repeated(batch, steps):
    """The same batch `steps` times."""
    import keras

    class Repeated(keras.utils.PyDataset):
        def __len__(self):
            return steps

        def __getitem__(self, i):
            return batch

    return Repeated()


if __name__ == "__main__":
    main()
