"""A last batch that does not divide by the devices: eight of them, on one processor."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

# In a process of its own: JAX counts its devices once.
SCRIPT = """
import json, sys
import keras, numpy as np
from test_faults import LABELS, IDS, lookup, tables
from keras_betakd import BetaKDDistiller, ForwardKLEnergy
from keras_betakd import DistillationPreprocessor, TaskBeta
from tiny_models import tiny_gemma_text

parallel = keras.distribution.DataParallel(auto_shard_dataset=False)
if sys.argv[1] == "8":
    keras.distribution.set_distribution(parallel)
rng = np.random.default_rng(0)
ids, labels = rng.integers(0, 4, (10, 3)), rng.integers(0, 5, (10, 3))
keras.utils.set_random_seed(0)
teacher, student = map(lookup, tables())
distiller = BetaKDDistiller(teacher, student, ForwardKLEnergy())
distiller.compile(optimizer=keras.optimizers.SGD(0.1))
found = [distiller.evaluate(ids, labels, batch_size=8, verbose=0, return_dict=True)]
options = {"shuffle": False, "verbose": 0, "epochs": 2}
found.append(distiller.fit(ids, labels, batch_size=8, **options).history)
records = {"prompts": ["what color"] * 10, "responses": ["red", "blue"] * 5}
pair = tiny_gemma_text(12), tiny_gemma_text()
distiller = BetaKDDistiller(*pair, ForwardKLEnergy())
distiller.compile(optimizer=keras.optimizers.SGD(0.1))
found.append(distiller.fit(records, batch_size=8, **options).history)
sys.stdout.write("RESULT" + json.dumps(found))
"""


def run(devices):
    flags = os.environ.get("XLA_FLAGS", "")
    environment = {
        **os.environ,
        "KERAS_BACKEND": "jax",
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-c", SCRIPT, str(devices)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.split("RESULT")[1])


if keras.backend.backend() == "jax":  # `DataParallel` is JAX's alone

    def test_ten_examples_on_eight_devices_are_what_they_are_on_one():
        """Keras alone fails: two examples cannot be split among eight."""
        for one, eight in zip(run(1), run(8), strict=True):
            assert one.keys() == eight.keys()
            for name, value in one.items():
                assert np.all(np.isfinite(value))
                # Keras weighs the mean of "loss" alone by rows, filled-up ones too.
                if name != "loss":
                    assert eight[name] == pytest.approx(value, rel=1e-4), name
