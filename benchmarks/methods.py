"""Measures what each newer method adds to plain distillation, on a small pair.

    python benchmarks/methods.py --seeds 0 1 2
    python benchmarks/methods.py --table      # of the runs that are finished

The teacher is that of `examples/scienceqa.py`, on easy-VQA; the labels of the training
questions are wrong in 30 of 100. The student has as many decoder blocks as the teacher,
three, so that there is one in the middle, a third of its width, and its frozen vision
tower. The base is what the library recommends: `CosineProbsEnergy` with an
`InstanceBeta`, and a beta of the cross-entropy. Each method adds an energy to it, takes
the place of its energy, or weighs its rows.

Seed by seed all methods have the same student, the same batches and the same steps. A
question is answered rightly if every token of the answer, its end included, is the
likeliest one behind those before it, as in greedy decoding. The file `--runs` keeps the
finished runs, and the same command goes on where it was stopped; a run takes about half
a minute of one core. Printed are means and standard deviations of test accuracy, the
differences to the base with 95 % intervals, paired by seed, and the processor time of
a training step divided by the base's, the median over seeds.
"""

import argparse
import gc
import os
import statistics
import sys
import time
from importlib.metadata import version

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import keras_hub
import numpy as np
from keras import ops
from scipy import special

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.append(os.path.join(HERE, "study"))
sys.path.append(os.path.join(os.path.dirname(HERE), "examples"))

import small_gemma  # noqa: E402
from paired import paired_difference, spread  # noqa: E402
from store import RunStore, read_runs  # noqa: E402
from train_teacher import make_optimizer  # noqa: E402

import keras_betakd as kd  # noqa: E402
from keras_betakd.data import ScienceQADataset  # noqa: E402
from keras_betakd.preprocessing import model_inputs  # noqa: E402

RUNS = os.path.join(HERE, "methods.jsonl")
MIDDLE = 1  # of the three decoder blocks of teacher and student
MAX_RESPONSE_LENGTH = small_gemma.TRAINING["max_response_length"]


def doubtful(teacher, log_beta):
    """Rows count by the teacher's entropy."""
    return teacher.uncertainty[..., 0]


def emphasis(teacher, log_beta):
    """beta^(-1/2)."""
    return ops.exp(-0.5 * log_beta)


def image_tokens(weights):
    energy = kd.ForwardKLEnergy()
    return kd.ImageTokenEnergy(energy, weights=weights, saliency_layer=MIDDLE)


def middle_blocks():
    name = f"decoder_block_{MIDDLE}"
    return kd.FeatureMSEEnergy(teacher_layer=name, student_layer=name)


BASE, LABELS = "base", "cross-entropy alone"
# What stands beside the base's energy, by the name of the method.
ADDED = {
    "ImageTokenEnergy, uniform": lambda: image_tokens("uniform"),
    "ImageTokenEnergy, saliency": lambda: image_tokens("saliency"),
    "ImageTokenEnergy, self_dissimilarity": lambda: image_tokens("self_dissimilarity"),
    "AttentionEnergy": kd.AttentionEnergy,
    "ImageAttentionEnergy": lambda: kd.ImageAttentionEnergy([MIDDLE], [MIDDLE]),
    "FeatureMSEEnergy, image features": kd.FeatureMSEEnergy,
    "FeatureMSEEnergy, middle blocks": middle_blocks,
}
# What stands in its place. EOPD adds to the reverse KL, so that is measured, too.
INSTEAD = {
    "ReverseKLEnergy": kd.ReverseKLEnergy,
    "EntropyAwareKLEnergy": kd.EntropyAwareKLEnergy,
}
ROW_WEIGHTS = {"row_weights, emphasis": emphasis, "row_weights, entropy": doubtful}
METHODS = (LABELS, BASE, *ADDED, *INSTEAD, *ROW_WEIGHTS)


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--methods", nargs="+", choices=METHODS, default=METHODS)
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--questions", type=int, default=small_gemma.LABELLED_QUESTIONS)
    add("--test-questions", type=int, default=1000)
    add("--epochs", type=int, default=8)
    add("--batch-size", type=int, default=32)
    add("--table", action="store_true", help="print the table of the finished runs")
    add("--runs", default=RUNS, help="file of the finished runs")
    add("--output", default="output/methods", help="folder of the easy-VQA files")
    return parser.parse_args()


def main():
    args = parse_arguments()
    if not args.table:
        run_all(RunStore(args.runs), args)
    setting = setting_of(args)
    print(table([run for run in read_runs(args.runs) if run["setting"] == setting]))


def setting_of(args):
    """What runs have in common that can be compared."""
    return (
        f"{args.questions} questions, {args.epochs} epochs, batches of "
        f"{args.batch_size}, {args.test_questions} test questions"
    )


def run_all(store, args):
    """Makes the runs that are not in the store, seed by seed."""
    setting = setting_of(args)
    pair = Pair(args)
    for seed in args.seeds:
        for method in args.methods:
            if (method, setting, seed) in store:
                continue
            found = pair.measured(method, seed)
            store.add({"arm": method, "setting": setting, "seed": seed, **found})
            gc.collect()
            print(f"{method}, seed {seed}: {found['accuracy']:.1f} %", flush=True)


class Pair:
    """The teacher, the questions, and the runs on them.

    Args:
        args: the command's arguments.
    """

    def __init__(self, args):
        self.args = args
        self.teacher = keras_hub.models.CausalLM.from_preset(small_gemma.TEACHER)
        preprocessor = self.teacher.preprocessor
        folder = os.path.join(args.output, "easy_vqa")
        train, test = (
            raw(records)
            for records in small_gemma.load_records(
                folder, args.questions, args.test_questions
            )
        )
        self.labelled, self.test = (
            preprocessor(model_inputs(preprocessor, x)) for x in (train, test)
        )
        self.paired = kd.DistillationPreprocessor(
            preprocessor, preprocessor, MAX_RESPONSE_LENGTH
        )(train)
        print(f"The teacher: {accuracy(self.teacher, self.test):.1f} %")
        mean, share = doubts(self.teacher, self.labelled)
        print(f"Its entropy at the tokens of answers: {mean:.3f} nats on average; half")
        print(f"of it at {share:.1f} % of the tokens", flush=True)

    def measured(self, method, seed):
        """Trains a student; its test accuracy and the processor's seconds of a step."""
        args, start = self.args, time.time()
        keras.utils.set_random_seed(seed)
        layers = self.teacher.backbone.num_layers
        student = small_gemma.make_student(self.teacher, layers)
        data = self.labelled if method == LABELS else self.paired
        batches = Batches(data, args.batch_size, seed)
        optimizer = make_optimizer(
            small_gemma.TRAINING["learning_rate"], args.epochs * len(batches)
        )
        if method == LABELS:
            model = on_labels(student, optimizer)
        else:
            keras.utils.set_random_seed(seed)  # the betas' start
            model = kd.BetaKDDistiller(self.teacher, student, **objective(method))
            model.compile(optimizer=optimizer)
        clock = Clock()
        model.fit(
            batches, epochs=args.epochs, shuffle=False, callbacks=[clock], verbose=0
        )
        return {
            "accuracy": accuracy(student, self.test),
            "step": clock.epoch() / len(batches),
            "seconds": time.time() - start,
            "versions": versions(),
        }


def objective(method):
    """The distiller's arguments that a method stands for."""
    energies = {"answer": INSTEAD.get(method, kd.CosineProbsEnergy)()}
    if method in ADDED:
        energies["added"] = ADDED[method]()
    beta = kd.InstanceBeta(row_weights=ROW_WEIGHTS.get(method))
    return {"energies": energies, "beta": beta, "task_beta": True}


def on_labels(student, optimizer):
    """A model that trains the student with cross-entropy alone."""
    student.backbone.vision_encoder.get_layer("image_encoder").trainable = False
    model = keras.Model(student.input, student.output)
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="mean_with_sample_weight"
    )
    model.compile(optimizer=optimizer, loss=loss)
    return model


def raw(records):
    """All records as one batch of raw records."""
    data = ScienceQADataset(
        records,
        batch_size=len(records),
        answer_format="text",
        form=small_gemma.PROMPT_FORM,
    )
    return data[0]


class Batches(keras.utils.PyDataset):
    """Whole batches of preprocessed questions, in another order each epoch.

    Args:
        data: `(x, y, sample_weight)` of all questions.
        batch_size: int.
        seed: of the orders, which do not depend on what else was drawn.
    """

    def __init__(self, data, batch_size, seed):
        super().__init__()
        self.data = keras.tree.map_structure(ops.convert_to_numpy, data)
        self.batch_size, self.count = batch_size, len(self.data[1])
        self.orders = np.random.default_rng(seed)
        self.on_epoch_end()

    def on_epoch_end(self):
        self.order = self.orders.permutation(self.count)

    def __len__(self):
        return self.count // self.batch_size

    def __getitem__(self, index):
        rows = self.order[index * self.batch_size :][: self.batch_size]
        return keras.tree.map_structure(lambda values: values[rows], self.data)


class Clock(keras.callbacks.Callback):
    """Takes the processor's seconds of each epoch: a shared machine distorts others."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.process_time()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.process_time() - self.start)

    def epoch(self):
        """The median without the first, in which the step is compiled."""
        return statistics.median(self.seconds[1:] or self.seconds)


def accuracy(model, test):
    """Per cent of the questions whose answer is right to its end."""
    found = logits_of(model, test).argmax(axis=-1)
    _, labels, weights = keras.tree.map_structure(ops.convert_to_numpy, test)
    right = (found == labels) | (weights == 0)
    return 100 * float(right.all(axis=1).mean())


def doubts(model, data):
    """Mean entropy in nats at the tokens of answers, and where it is concentrated.

    Returns:
        `(mean, share)`: `share` per cent of the tokens, the least certain ones, have
        half of all entropy.
    """
    logits = logits_of(model, data)[ops.convert_to_numpy(data[2]) > 0]
    log_p = logits - special.logsumexp(logits, axis=-1, keepdims=True)
    entropies = np.sort(-(np.exp(log_p) * log_p).sum(axis=-1))[::-1]
    reached = np.cumsum(entropies) < entropies.sum() / 2
    return entropies.mean(), 100 * (reached.sum() + 1) / len(entropies)


def logits_of(model, data):
    """(B, T, V) of preprocessed inputs, in float64."""
    x = keras.tree.map_structure(ops.convert_to_numpy, data[0])
    plain = keras.Model(model.input, model.output)  # does not preprocess them again
    return plain.predict(x, batch_size=200, verbose=0).astype("float64")


def versions():
    packages = "keras", "keras-hub", keras.config.backend()
    return ", ".join(f"{name} {version(name)}" for name in packages)


def table(runs):
    """The Markdown table of runs."""
    by_method = {}
    for run in runs:
        by_method.setdefault(run["arm"], {})[run["seed"]] = run
    lines = [
        "| method | seeds | test accuracy, % | above the base | cost of a step |",
        "|---|---|---|---|---|",
    ]
    base = by_method.get(BASE, {})
    for method in METHODS:
        if method in by_method:
            cells = cells_of(by_method[method], base, method == BASE)
            lines.append(f"| {' | '.join([method, *cells])} |")
    return "\n".join(lines)


def cells_of(runs, base, is_base):
    """A method's number of seeds, accuracy, and comparisons with the base."""
    accuracies, theirs = (
        {seed: run["accuracy"] for seed, run in x.items()} for x in (runs, base)
    )
    mean, deviation = spread(accuracies.values())
    found = f"{mean:.1f} ± {deviation:.1f}" if len(runs) > 1 else f"{mean:.1f}"
    cells = [str(len(runs)), found]
    both = sorted(set(runs) & set(base))
    if is_base or not both:
        return [*cells, "", "1.00" if is_base else ""]
    ratio = statistics.median(runs[s]["step"] / base[s]["step"] for s in both)
    return [*cells, difference(accuracies, theirs, both), f"{ratio:.2f}"]


def difference(ours, theirs, seeds):
    """The paired difference; of one seed, without an interval."""
    if len(seeds) == 1:
        return f"{ours[seeds[0]] - theirs[seeds[0]]:+.1f}"
    return str(paired_difference(ours, theirs))


if __name__ == "__main__":
    main()
