"""Trains and measures the runs of an arm, all settings and seeds at once.

A run is Keras' own training step of the model under test (`train_step`, what `fit`
compiles), put into a loop by `jax.lax.scan` and beside the other runs of its arm by
`jax.vmap`: many small trainings in one program. `tests/test_study.py` compares it with
`fit`.
"""

import functools
import time

import jax
import keras
import keras_hub
import numpy as np
from arm_models import energies_and_beta
from arms import on_policy
from measures import of_betas, rounded
from own_answers import OwnAnswers
from settings import BATCH, EXPERIMENTS, PARTS
from students import cross_entropy, keras_distiller, make_student
from teachers import make_optimizer

import keras_betakd


class Trainer:
    """Trains the students of an arm.

    Args:
        tasks: dict of setting to `tasks.Task`.
        experiment: the `settings.Experiment` of which they are.
        starts: dict of seed to the weights that students start from; drawn anew for
            seeds that are not in it.
    """

    def __init__(self, tasks, experiment, starts=None):
        self.tasks, self.experiment = tasks, experiment
        self._students = dict(starts or {})
        sizes = [len(task.train) for task in tasks.values()]
        firsts = np.cumsum([0, *sizes[:-1]]).tolist()
        self._firsts = dict(zip(tasks, firsts, strict=True))

    def run(self, jobs):
        """The runs of jobs (arm, setting, seed) of one program; a list of dicts."""
        start = time.time()
        tasks = [self.tasks[setting] for _, setting, _ in jobs]
        model, student, states, curves = self._trained(jobs)
        found = read_program(model, student)(states, [task.test for task in tasks])
        runs = []
        for i, (arm, setting, seed) in enumerate(jobs):
            run = {"arm": arm, "setting": setting, "seed": seed}
            run["test"] = tasks[i].test.measured(**found[i])
            run["teacher"] = tasks[i].test.teacher_measured()
            run["validation"] = curves[i][-1]["accuracy_choices"]
            run["curve"] = curves[i]
            _put(model, states, i)
            run.update(of_betas(model, tasks[i].test, found[i]["logits"]))
            runs.append(run)
        seconds = (time.time() - start) / len(runs)
        about = {"seconds": seconds, "versions": versions()}
        return [rounded({**run, **about}) for run in runs]

    def weights_of_students(self, jobs):
        """A list of the weights that the students of jobs have in the end."""
        model, student, states, _ = self._trained(jobs)
        found = []
        for i in range(len(jobs)):
            _put(model, states, i)
            found.append(student.get_weights())
        return found

    def _trained(self, jobs):
        """`(model, student, states, curves)` after all steps."""
        tasks = [self.tasks[setting] for _, setting, _ in jobs]
        model, student = self._compiled(jobs[0][0], tasks[0])
        states = _stacked(
            [
                self._start(model, student, arm, task, seed)
                for task, (arm, _, seed) in zip(tasks, jobs, strict=True)
            ]
        )
        train, read = train_program(model), read_program(model, student)
        data = training_data(jobs[0][0], self.tasks.values())
        curves, own = [[] for _ in jobs], None
        parts = np.split(self._rows(jobs), PARTS, axis=1)
        if on_policy(jobs[0][0]):
            firsts = [self._firsts[setting] for _, setting, _ in jobs]
            rows = parts[0][0].size
            own = OwnAnswers(jobs, tasks, firsts, data, rows, student)
            data = own.data
        for number, part in enumerate(parts):
            if own is not None:
                weights_of = student_weights(model, student, states)
                part = own.with_own(number, part, weights_of)
            states = train(states, data, part)
            found = read(states, [task.validation for task in tasks])
            for i, (curve, task) in enumerate(zip(curves, tasks, strict=True)):
                _put(model, states, i)
                tracked = model.get_metrics_result()
                point = {name: float(value) for name, value in tracked.items()}
                point.update(task.validation.measured(**found[i], brief=True))
                curve.append(point)
            states = (*states[:3], jax.tree.map(np.zeros_like, states[3]))
        return model, student, states, curves

    def _rows(self, jobs):
        """(jobs, steps, batch): the rows of `training_data` in each step."""
        steps = self.experiment.steps
        orders = [
            self._firsts[setting]
            + row_order(len(self.tasks[setting].train), steps * BATCH, seed)
            for _, setting, seed in jobs
        ]
        return np.stack(orders).reshape(len(jobs), steps, BATCH)

    def _compiled(self, arm, task):
        student = make_student(task, self.experiment.width)
        optimizer = make_optimizer(self.experiment.learning_rate, self.experiment.steps)
        model = student
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
        if seed not in self._students:
            keras.utils.set_random_seed(seed)
            width = self.experiment.width
            self._students[seed] = make_student(task, width).get_weights()
        keras.utils.set_random_seed(seed)  # the betas' start, whoever came before
        student.set_weights(self._students[seed])
        if isinstance(model, keras_betakd.BetaKDDistiller):
            fresh = build_distiller(arm, task, student)
            for beta, new in zip(betas_of(model), betas_of(fresh), strict=True):
                beta.set_weights(new.get_weights())
            model.teacher.set_weights(task.teacher.get_weights())
        return [[np.array(v) for v in group] for group in _variables(model)]


def starts_of(tasks, experiment, seeds):
    """What students of an experiment start from: dict of seed to weights, or none."""
    if not experiment.learnt_before:
        return {}
    before = Trainer(tasks, EXPERIMENTS["drawn"])
    jobs = [("ce", "before", seed) for seed in seeds]
    return dict(zip(seeds, before.weights_of_students(jobs), strict=True))


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
    """`(states, splits) -> found`: what each run's split reads of its student."""
    mine = places_of(student, model)

    @functools.partial(jax.jit, static_argnums=0)
    def found(read, trainable, inputs):
        chosen = [trainable[i] for i in mine]
        return read(lambda x: student.stateless_call(chosen, [], x)[0], inputs)

    # One run after another: side by side they would take gigabytes.
    def of_all(states, splits):
        for i, split in enumerate(splits):
            trainable = [variables[i] for variables in states[0]]
            outputs = found(type(split).read_of, trainable, split.student)
            yield {name: np.asarray(value) for name, value in outputs.items()}

    return lambda states, splits: list(of_all(states, splits))


def places_of(student, model):
    """Where the student's trainable variables are among the model's."""
    everything = model.trainable_variables
    return [
        next(i for i, v in enumerate(everything) if v is variable)
        for variable in student.trainable_variables
    ]


def student_weights(model, student, states):
    """A function of the number of a run to its student's weights."""
    mine = places_of(student, model)
    return lambda i: [states[0][place][i] for place in mine]


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
    weight = stacked(lambda s: s.weights)
    if arm == "ce":
        return student, labels, weight
    if arm.startswith("keras.distillation"):
        logits = stacked(lambda s: s.teacher_logits)[:, None]
        return {**student, "teacher_logits": logits}, labels, weight
    teacher = stacked(lambda s: s.teacher)
    x = {"student": student, "teacher": teacher, "sample_weight": weight}
    if "rows" in teacher:
        x["teacher_positions"] = np.zeros(labels.shape, "int32")
    return x, labels, weight


def row_order(count, needed, seed):
    """`needed` rows out of `count`, in another order each epoch."""
    rng = np.random.default_rng((seed, 7))
    epochs = -(-needed // count)
    return np.concatenate([rng.permutation(count) for _ in range(epochs)])[:needed]


def versions():
    modules = ("keras", keras), ("keras-hub", keras_hub), ("jax", jax)
    return ", ".join(f"{name} {module.__version__}" for name, module in modules)
