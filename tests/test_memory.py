"""Training holds no more memory at step 500 than at step 100."""

import gc
import os
import sys

import keras
import numpy as np
import pytest

import keras_betakd as kd

WIDTH, POSITIONS, CLASSES, BATCH = 4, 3, 4000, 4
STEPS_AN_EPOCH = 100
# One copy of a batch's logits kept at each step would be 73 MiB by the end.
MOST_GROWTH = 12 * 2**20


class ResidentSize(keras.callbacks.Callback):
    """Bytes that the process holds after each epoch."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def on_epoch_end(self, epoch, logs=None):
        gc.collect()
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
        self.sizes.append(pages * os.sysconf("SC_PAGE_SIZE"))


@pytest.mark.backends
@pytest.mark.traced
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.one_of_two("jax")
def test_memory_is_flat_over_500_steps():
    """A graph or batch that is kept at each step ends a long run after hours."""
    teacher, student = (
        keras.Sequential([keras.Input((POSITIONS, WIDTH)), keras.layers.Dense(CLASSES)])
        for _ in range(2)
    )
    distiller = kd.BetaKDDistiller(
        teacher,
        student,
        [kd.CosineProbsEnergy(), kd.TAIDEnergy(500)],
        [kd.InstanceBeta(features="uncertainty"), kd.AnalyticBeta()],
        task_beta=True,
    )
    distiller.compile(optimizer=keras.optimizers.Adam(1e-3))
    rng = np.random.default_rng(0)
    records = BATCH * STEPS_AN_EPOCH
    x = rng.normal(size=(records, POSITIONS, WIDTH)).astype("float32")
    y = rng.integers(0, CLASSES, (records, POSITIONS))
    weight = (rng.random(y.shape) < 0.7).astype("float32")
    watch = ResidentSize()
    distiller.fit(
        x, y, sample_weight=weight, batch_size=BATCH, epochs=5, verbose=0,
        callbacks=[watch],
    )  # fmt: skip
    assert len(watch.sizes) == 5
    assert watch.sizes[-1] - watch.sizes[0] < MOST_GROWTH
