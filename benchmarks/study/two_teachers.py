"""Two teachers at once, of which one was taught wrong in a part of the questions.

    python benchmarks/study/two_teachers.py
    python benchmarks/study/two_teachers.py --seeds 0 --arms "both, instance"

The questions, students, steps and teachers are those of the study's drawn problems
(`settings.py`, `teachers.py`); 40 % of the labels are wrong. A student learns from the
good teacher, from the biased one, or from both, each with its own beta. Printed are a
table of test accuracy, and how well the betas tell where the biased teacher was taught
wrong: the probability that its beta is lower at such a question than at another (AUC;
0.5 says nothing), and the same of its beta divided by the good teacher's. Keras runs on
JAX.
"""

import argparse
import os

os.environ["KERAS_BACKEND"] = "jax"

import keras
import numpy as np
from paired import spread
from settings import BATCH, SEEDS, Experiment, Setting
from students import make_student
from tasks import load_tasks
from teachers import make_optimizer

import keras_betakd as kd
from keras_betakd.evaluation import beta_and_errors

ENERGY = kd.CosineProbsEnergy
BETAS = {
    "fixed": lambda: {"beta": kd.FixedBeta(1.0)},
    "task": lambda: {"beta": kd.TaskBeta(), "task_beta": True},
    "instance": lambda: {"beta": kd.InstanceBeta(), "task_beta": True},
}
WHO = {"good": ["good"], "biased": ["biased"], "both": ["good", "biased"]}
ARMS = [f"{who}, {beta}" for who in WHO for beta in BETAS]


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--arms", nargs="+", choices=ARMS, default=ARMS)
    add("--seeds", nargs="+", type=int, default=list(SEEDS))
    add("--wrong", type=float, default=0.4, help="share of the labels")
    add("--output", default="output/study", help="folder of the teachers' caches")
    return parser.parse_args()


def load_both(output, wrong):
    """Dict of the `Task` of each teacher, over the same questions and labels."""
    settings = {name: Setting(3000, wrong, name) for name in WHO["both"]}
    experiment = Experiment(settings)
    return load_tasks(output, experiment), experiment


def trained(arm, seed, tasks, experiment):
    """The distiller after the training of one run."""
    who, beta = arm.split(", ")
    names, first = WHO[who], tasks[WHO[who][0]]
    keras.utils.set_random_seed(seed)
    student = make_student(first, experiment.width)
    keras.utils.set_random_seed(seed)  # the betas' start, whoever the teachers are
    teachers = {name: tasks[name].teacher for name in names}
    distiller = kd.BetaKDDistiller(teachers, student, ENERGY(), **BETAS[beta]())
    optimizer = make_optimizer(experiment.learning_rate, experiment.steps)
    distiller.compile(optimizer=optimizer)
    split = first.train
    x = {
        "student": split.student,
        "teacher": {name: tasks[name].train.teacher for name in names},
        "teacher_positions": dict.fromkeys(
            names, np.zeros(split.labels.shape, "int32")
        ),
    }
    epochs = -(-experiment.steps * BATCH // len(split))
    distiller.fit(x, split.labels, batch_size=BATCH, epochs=epochs, verbose=0)
    return distiller


def measured(distiller, tasks):
    """Test accuracy, and what the betas tell; a dict of numbers."""
    names = list(distiller.teacher.members)
    test = tasks[names[0]].test
    logits = distiller.student.predict(test.student, batch_size=500, verbose=0)
    found = {"accuracy": test.measured(logits, brief=True)["accuracy_choices"]}
    betas = {name: beta_of(distiller, name, tasks[name].test) for name in names}
    if any(beta is None for beta in betas.values()) or "biased" not in betas:
        return found
    wrong = tasks["biased"].test.biased
    found["auc"] = beta_and_errors(betas["biased"], wrong).auc
    if "good" in betas:
        found["auc_ratio"] = beta_and_errors(betas["biased"] / betas["good"], wrong).auc
    return found


def beta_of(distiller, teacher, split):
    """A teacher's beta at each question, (N,); `None` where it is one for all."""
    beta = distiller.betas[f"{teacher}_{ENERGY().name}"]
    if not beta.uses_features:
        return None
    outputs = split.teacher_outputs()
    log_beta = beta.log_beta(beta.features_of(outputs))
    return np.exp(keras.ops.convert_to_numpy(log_beta)).reshape(-1)


def main():
    args = parse_arguments()
    tasks, experiment = load_both(args.output, args.wrong)
    print("| teachers, beta | accuracy | AUC of beta | AUC of the betas' ratio |")
    print("| --- | --- | --- | --- |")
    for arm in args.arms:
        runs = []
        for seed in args.seeds:
            distiller = trained(arm, seed, tasks, experiment)
            runs.append(measured(distiller, tasks))
        cells = [arm]
        for name, form in (("accuracy", "{:.1f} ± {:.1f} %"), *_AUCS):
            values = [run[name] for run in runs if name in run]
            cells.append(form.format(*spread(values)) if values else "")
        print(f"| {' | '.join(cells)} |", flush=True)


_AUCS = (("auc", "{:.2f} ± {:.2f}"), ("auc_ratio", "{:.2f} ± {:.2f}"))


if __name__ == "__main__":
    main()
