"""Trains with three learned betas, with and without bounds, to show why beta has them.

    KERAS_BACKEND=jax python examples/three_losses.py

Trains small students on easy-VQA with cross-entropy, `CosineProbsEnergy` and
`FeatureMSEEnergy` between image features, all three weighted by a `TaskBeta`, with SGD.
The features can be matched almost exactly, so their beta grows until a step overshoots.
Prints test accuracy and the largest relapse of the feature energy (its mean over an
epoch divided by the least mean before), for some seeds, and plots the first. Takes
about four minutes on two cores.
"""

import argparse
import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import keras_hub
import numpy as np
import small_gemma
from matplotlib.figure import Figure

import keras_betakd
from keras_betakd.data import ScienceQADataset
from keras_betakd.folders import FolderOwner

BOUNDS = {
    "none": (1e-12, 1e12),
    "0.01 to 100 (default)": (0.01, 100.0),
    "0.01 to 10": (0.01, 10.0),
}


def dataset(records, shuffle=False):
    return ScienceQADataset(
        records,
        batch_size=64,
        shuffle=shuffle,
        seed=0,
        answer_format="text",
        form=small_gemma.PROMPT_FORM,
    )


def train(teacher, train_records, test_records, bounds, seed, args):
    """Trains a student; returns the history by epoch and the test results."""
    keras.utils.set_random_seed(seed)
    student = small_gemma.make_student(teacher)

    def beta():
        low, high = bounds
        return keras_betakd.TaskBeta(min_value=low, max_value=high)

    distiller = keras_betakd.BetaKDDistiller(
        teacher,
        student,
        energies={
            "answer": keras_betakd.CosineProbsEnergy(),
            "feature": keras_betakd.FeatureMSEEnergy(),
        },
        beta=[beta(), beta()],
        task_beta=beta(),
        preprocessor=keras_betakd.DistillationPreprocessor(
            teacher.preprocessor, student.preprocessor, 3
        ),
    )
    distiller.compile(optimizer=keras.optimizers.SGD(args.learning_rate, momentum=0.9))
    batches = dataset(train_records, shuffle=True)
    history = distiller.fit(batches, epochs=args.epochs, verbose=0).history
    results = distiller.evaluate(dataset(test_records), verbose=0, return_dict=True)
    return history, results


def relapse(energy):
    """The largest ratio of an energy to its least value in the epochs before."""
    least = np.minimum.accumulate(energy)
    return float(np.max(np.asarray(energy)[1:] / least[:-1]))


def draw(path, histories):
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    panels = figure.subplots(1, 3)
    names = {
        "feature": "image-feature energy",
        "feature_beta": "its beta",
        "task_loss": "cross-entropy (nats)",
    }
    for panel, (name, title) in zip(panels, names.items(), strict=True):
        for label, history in histories.items():
            epochs = range(1, len(history[name]) + 1)
            panel.plot(epochs, history[name], label=label)
        panel.set(title=title, xlabel="epoch", yscale="log")
        panel.xaxis.get_major_locator().set_params(integer=True)
    panels[0].legend()
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="output")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--questions", type=int, default=1000)
    args = parser.parse_args()
    with FolderOwner(args.output, "examples/three_losses.py"):
        run(args)


def run(args):
    teacher = keras_hub.models.CausalLM.from_preset(small_gemma.TEACHER)
    folder = os.path.join(args.output, "easy_vqa")
    records = small_gemma.load_records(folder, args.questions, args.questions)
    drawn = {}
    print("bounds | seed | test accuracy | test cross-entropy | relapse of features")
    for seed in range(args.seeds):
        for name, bounds in BOUNDS.items():
            history, results = train(teacher, *records, bounds, seed, args)
            drawn.setdefault(name, history)
            print(
                f"{name} | {seed} | {100 * results['accuracy']:.1f} % | "
                f"{results['task_loss']:.3f} | {relapse(history['feature']):.1f} x",
                flush=True,
            )
    path = os.path.join(args.output, "three_losses.png")
    draw(path, drawn)
    print(f"saved {path}")


if __name__ == "__main__":
    main()
