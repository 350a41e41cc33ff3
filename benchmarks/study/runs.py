"""Trains and measures the runs of an arm, all settings and seeds at once.

A run is Keras' own training step of the model under test (`train_step`, what `fit`
compiles), put into a loop by `jax.lax.scan` and beside the other runs of its arm by
`jax.vmap`: many small trainings in one program. `tests/test_study.py` compares it with
`fit`.
"""

import time

import jax
import keras
import keras_hub
import numpy as np
from arm_models import energies_and_beta
from measures import measured, of_betas, rounded
from settings import BATCH, LEARNING_RATE, PARTS, STEPS
from students import cross_entropy, keras_distiller, make_student
from teachers import make_optimizer

import keras_betakd


class Trainer:
    """Trains the students of an arm.

    Args:
        tasks: dict of setting to `tasks.Task`.
        steps: how many steps a run has.
    """

    def __init__(self, tasks, steps=STEPS):
        self.tasks, self.steps = tasks, steps
        self._students = {}
        sizes = [len(task.train) for task in tasks.values()]
        firsts = np.cumsum([0, *sizes[:-1]]).tolist()
        self._firsts = dict(zip(tasks, firsts, strict=True))

    def run(self, jobs):
        """The runs of jobs (arm, setting, seed) of one program; a list of dicts."""
        start, arm = time.time(), jobs[0][0]
        tasks = [self.tasks[setting] for _, setting, _ in jobs]
        model, student = self._compiled(arm, tasks[0])
        states = _stacked(
            [
                self._start(model, student, arm, task, seed)
                for task, (arm, _, seed) in zip(tasks, jobs, strict=True)
            ]
        )
        rows = np.stack(
            [
                self._firsts[setting]
                + row_order(len(task.train), self.steps * BATCH, seed)
                for task, (_, setting, seed) in zip(tasks, jobs, strict=True)
            ]
        ).reshape(len(jobs), self.steps, BATCH)
        train, read = train_program(model), read_program(model, student)
        data = training_data(arm, self.tasks.values())
        curves = [[] for _ in jobs]
        for part in np.split(rows, PARTS, axis=1):
            states = train(states, data, part)
            points = self._points(model, read(states, tasks[0].validation), states)
            for curve, task, point in zip(curves, tasks, points, strict=True):
                logits = point.pop("logits")
                curve.append({**point, **measured(logits, task.validation, brief=True)})
            states = (*states[:3], jax.tree.map(np.zeros_like, states[3]))
        logits = np.asarray(read(states, tasks[0].test))
        runs = []
        for i, (arm, setting, seed) in enumerate(jobs):
            run = {"arm": arm, "setting": setting, "seed": seed}
            run["test"] = measured(logits[i], tasks[i].test)
            run["teacher"] = measured(tasks[i].test.teacher_logits, tasks[i].test)
            run["validation"] = curves[i][-1]["accuracy_choices"]
            run["curve"] = curves[i]
            _put(model, states, i)
            run.update(of_betas(model, tasks[i].test, logits[i]))
            runs.append(run)
        seconds = (time.time() - start) / len(runs)
        about = {"seconds": seconds, "versions": versions()}
        return [rounded({**run, **about}) for run in runs]

    def _compiled(self, arm, task):
        student = make_student(task)
        model, optimizer = student, make_optimizer(LEARNING_RATE, self.steps)
        if "clip=off" in arm:
            optimizer.clipnorm = None
        if arm == "ce" or arm.startswith("keras.distillation"):
            if arm != "ce":
                model = keras_distiller(student, corrected=arm.endswith("corrected"))
            model.compile(optimizer=optimizer, loss=cross_entropy())
            optimizer.build(model.trainable_variables)
        else:
            model = build_distiller(arm, task, student)
            model.compile(optimizer=optimizer)
        return model, student

    def _start(self, model, student, arm, task, seed):
        """The model's state as a seed starts: the same student for every arm."""
        keras.utils.set_random_seed(seed)
        if seed not in self._students:
            self._students[seed] = make_student(task).get_weights()
        student.set_weights(self._students[seed])
        if isinstance(model, keras_betakd.BetaKDDistiller):
            fresh = build_distiller(arm, task, student)
            for beta, new in zip(betas_of(model), betas_of(fresh), strict=True):
                beta.set_weights(new.get_weights())
            model.teacher.set_weights(task.teacher.get_weights())
        return [[np.array(v) for v in group] for group in _variables(model)]

    def _points(self, model, logits, states):
        """Of each run, the means of what Keras tracked, and the logits."""
        for i, found in enumerate(np.asarray(logits)):
            _put(model, states, i)
            tracked = model.get_metrics_result()
            yield {**{k: float(v) for k, v in tracked.items()}, "logits": found}


def train_program(model):
    """`(states, data, rows) -> states`: Keras' training steps on the rows of each run.

    Args:
        model: a compiled Keras model.
    """

    def run(state, data, rows):
        def step(state, chosen):
            batch = jax.tree.map(lambda array: array[chosen], data)
            return model.train_step(state, batch)[1], None

        return jax.lax.scan(step, state, rows)[0]

    return jax.jit(jax.vmap(run, in_axes=(0, None, 0)))


def read_program(model, student):
    """`(states, split) -> logits`, (runs, N, V)."""
    everything = model.trainable_variables
    mine = [
        next(i for i, v in enumerate(everything) if v is variable)
        for variable in student.trainable_variables
    ]

    def logits(trainable, inputs):
        chosen = [trainable[i] for i in mine]
        return student.stateless_call(chosen, [], inputs)[0][:, 0]

    # One run after another: side by side they would take gigabytes.
    program = jax.jit(
        lambda trainable, x: jax.lax.map(lambda one: logits(one, x), trainable)
    )
    return lambda states, split: program(states[0], split.student)


def _variables(model):
    return (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )


def _stacked(states):
    return tuple(
        [np.stack(values) for values in zip(*group, strict=True)]
        for group in zip(*states, strict=True)
    )


def _put(model, states, i):
    """Gives the model's variables the values of a run."""
    for variables, values in zip(_variables(model), states, strict=True):
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value[i])


def betas_of(model):
    """All beta layers of a distiller, that of the cross-entropy included."""
    task = [] if model.task_beta is None else [model.task_beta]
    return [*task, *model.betas.values()]


def build_distiller(arm, task, student):
    return keras_betakd.BetaKDDistiller(
        task.teacher, student, preprocessor=None, **energies_and_beta(arm)
    )


def training_data(arm, tasks):
    """`(x, y, sample_weight)` for an arm's model: the rows of all settings in turn."""
    splits = [task.train for task in tasks]

    def stacked(read):
        return keras.tree.map_structure(
            lambda *arrays: np.concatenate(arrays), *map(read, splits)
        )

    student, labels = stacked(lambda s: s.student), stacked(lambda s: s.labels)
    weight = np.ones(labels.shape, "float32")
    if arm == "ce":
        return student, labels, weight
    if arm.startswith("keras.distillation"):
        logits = stacked(lambda s: s.teacher_logits)[:, None]
        return {**student, "teacher_logits": logits}, labels, weight
    x = {
        "student": student,
        "teacher": stacked(lambda s: s.teacher),
        "teacher_positions": np.zeros(labels.shape, "int32"),
        "sample_weight": weight,
    }
    return x, labels, weight


def row_order(count, needed, seed):
    """`needed` rows out of `count`, in another order each epoch."""
    rng = np.random.default_rng((seed, 7))
    epochs = -(-needed // count)
    return np.concatenate([rng.permutation(count) for _ in range(epochs)])[:needed]


def versions():
    modules = ("keras", keras), ("keras-hub", keras_hub), ("jax", jax)
    return ", ".join(f"{name} {module.__version__}" for name, module in modules)
