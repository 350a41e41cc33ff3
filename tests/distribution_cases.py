"""The trainings that `test_distribution.py` compares; also run as a script by it.

    python distribution_cases.py FOLDER devices       8 devices of JAX, 2 of TensorFlow
    python distribution_cases.py FOLDER process       one process of several
    python distribution_cases.py FOLDER answers       8 devices of JAX

Each case trains on a last batch that does not divide, and returns all that must be the
same on one device and on many.
"""

import json
import os
import sys

import keras
import numpy as np
from keras import ops
from plain_models import CLASSES, linear_model
from tiny_models import random_image, tiny_gemma3, vqa_records

import keras_betakd
from keras_betakd import AnalyticBeta, InstanceBeta, ProcessShare, TaskBeta, TokenBeta


class Batches(keras.utils.PyDataset):
    """Batches of four of `(x, y, sample_weight)`."""

    def __init__(self, *data):
        super().__init__()
        self.data = data

    @property
    def num_batches(self):
        return -(-len(self.data[1]) // 4)

    def __getitem__(self, index):
        rows = slice(4 * index, 4 * index + 4)
        return keras.tree.map_structure(lambda a: a[rows], self.data)


def plain():
    """All kinds of beta and of state, masked examples, and a teacher's row of NaN."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(11, 3, 4)).astype("float32")
    y = rng.integers(0, CLASSES, size=(11, 3))
    weight = rng.integers(0, 3, size=(11, 3)).astype("float32")
    weight[4:6] = 0  # the half that one of two replicas has
    weight[10] = 1  # alone in the last part
    theirs = x.copy()
    theirs[1, 0] = theirs[8, 1] = np.nan
    weight[[1, 8], [0, 1]] = 1
    student = linear_model(2)
    student.layers[-1].kernel.regularizer = keras.regularizers.L2(0.1)
    energies = {
        "kl": keras_betakd.ForwardKLEnergy(),
        "js": keras_betakd.JensenShannonEnergy(),
        "taid": keras_betakd.TAIDEnergy(total_steps=10),
        "ctkd": keras_betakd.CTKDEnergy(total_steps=10, multiplier=10.0),
    }
    betas = {
        "kl": TaskBeta(row_weights=lambda t, _: t.uncertainty[..., 0]),
        "js": AnalyticBeta(momentum=0.5),
        "taid": TokenBeta(features=lambda teacher: teacher.logits),
        # Replicas once left out what the shrinkage adds to the loss.
        "ctkd": InstanceBeta(features="uncertainty", shrinkage=2.0),
    }
    distiller = keras_betakd.BetaKDDistiller(
        linear_model(1), student, energies, betas, task_beta=True
    )
    task_weight = rng.integers(0, 2, size=(11, 1)).astype("float32")
    x = {"student": x, "teacher": theirs, "task_weight": task_weight}
    return distiller, Batches(x, y, weight)


def pair():
    """A teacher and a student whose logits depend on all of their inputs."""
    models = tiny_gemma3(width=16, heads=4), tiny_gemma3(heads=4)
    rng = np.random.default_rng(0)
    for model in models:
        for variable in model.variables:
            variable.assign(variable + rng.normal(size=variable.shape, scale=0.1))
    return models


def images():
    """The fused head; images on some devices, text alone on others, then reversed."""
    teacher, student = pair()
    has_image = [True, True, False, False, False, False, True]
    question = "Question: what color is the shape?"
    records = {
        "prompts": [f"<image>\n{question}" if has else question for has in has_image],
        "responses": ["red", "blue is teal", "yes", "no", "green", "teal", "one two"],
        "images": [[random_image(i)] if has else [] for i, has in enumerate(has_image)],
    }
    energies = {
        "kl": keras_betakd.ForwardKLEnergy(),
        "features": keras_betakd.FeatureMSEEnergy(),
    }
    distiller = keras_betakd.BetaKDDistiller(
        teacher,
        student,
        energies,
        {"kl": InstanceBeta(), "features": TaskBeta()},
        preprocessor=keras_betakd.DistillationPreprocessor(
            teacher.preprocessor, student.preprocessor, 6
        ),
    )
    return distiller, records


def answers():
    """The student answers a part of the prompts itself, at the beginning of epochs."""
    energy = keras_betakd.ReverseKLEnergy()
    distiller = keras_betakd.BetaKDDistiller(*pair(), energy, max_response_length=6)
    return distiller, keras_betakd.StudentAnswers(vqa_records(8), 0.5)


def trained(case, seed=0):
    """Trains a case; returns what training reports, and all variables."""
    keras.utils.set_random_seed(seed)
    distiller, dataset = case()
    distiller.compile(keras.optimizers.SGD(0.02, momentum=0.5))
    given = [as_list(w) for w in distiller.teacher.weights]
    options = {"epochs": 2, "verbose": 0, "shuffle": False}
    if case is answers:
        options["batch_size"] = 4
    else:
        dataset = ProcessShare(dataset, batch_size=4)
    history = distiller.fit(dataset, **options).history
    shown = {}
    if case is plain:  # once is enough for what compiles long
        shown = distiller.evaluate(dataset, verbose=0, return_dict=True)
    state = distiller.variables + distiller.optimizer.variables
    # Each process knows its own samples.
    state = [v for v in state if v.name != "samples"]
    kept = [v for v in state if "seed_generator" not in v.path]
    return {
        **history,
        **{f"evaluate {name}": value for name, value in shown.items()},
        **{f"variable {i}": as_list(v) for i, v in enumerate(kept)},
        "teacher given": given,
        "teacher kept": [as_list(w) for w in distiller.teacher.weights],
    }


def as_list(variable):
    return ops.convert_to_numpy(variable).tolist()


def check_same(received, expected):
    """Asserts that two results of `trained` are equal."""
    assert received.keys() == expected.keys()
    # Bit for bit: the first process's on all of them, and never moved.
    assert received["teacher kept"] == expected["teacher given"]
    for name, value in expected.items():
        if name.startswith("teacher"):
            continue
        np.testing.assert_allclose(
            received[name], value, rtol=1e-5, atol=1e-6, err_msg=name
        )


def write(folder, **found):
    """Writes each result to a JSON file of its name."""
    for name, result in found.items():
        with open(os.path.join(folder, f"{name}.json"), "w") as file:
            json.dump(result, file)


def on_devices(folder):
    """Runs the cases on several devices of this process."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        (processor,) = tf.config.list_physical_devices("CPU")
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(processor, two)
        with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
            write(folder, plain=trained(plain))
        return
    parallel = keras.distribution.DataParallel(auto_shard_dataset=False)
    with parallel.scope():
        write(folder, plain=trained(plain))
    devices = keras.distribution.list_devices()
    mesh = keras.distribution.DeviceMesh((2, 4), ("batch", "model"), devices)
    layouts = keras_betakd.layout_map(mesh)
    with keras.distribution.ModelParallel(layout_map=layouts).scope():
        write(folder, images=trained(images))


def answers_on_devices(folder):
    """Runs the case of own answers on several devices of this process, with JAX."""
    with keras.distribution.DataParallel(auto_shard_dataset=False).scope():
        write(folder, answers=trained(answers))


def in_process(folder):
    """Runs the cases in one process of several: with JAX, or PyTorch by torchrun."""
    if keras.backend.backend() == "torch":
        import torch

        torch.distributed.init_process_group("gloo")
        rank = torch.distributed.get_rank()
    else:
        import jax

        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        keras.distribution.initialize()
        parallel = keras.distribution.DataParallel(auto_shard_dataset=False)
        keras.distribution.set_distribution(parallel)
        rank = jax.process_index()
    # Another start in each process: all begin with the first one's.
    seed = rank if keras.backend.backend() == "torch" else 0
    found = {f"plain{rank}": trained(plain, seed)}
    if keras.backend.backend() == "torch":
        found[f"images{rank}"] = trained(images, seed)
    write(folder, **found)


if __name__ == "__main__":
    ways = {"devices": on_devices, "process": in_process, "answers": answers_on_devices}
    ways[sys.argv[2]](sys.argv[1])
