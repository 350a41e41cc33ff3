"""Run by `wheel.sh` in a clean environment: the installed wheel trains two steps.

Not a pytest module: it must run where only the wheel, keras-hub and one backend are.
"""

import pathlib
import sys

import keras
import numpy as np

import keras_betakd
from keras_betakd import BetaKDDistiller, CosineProbsEnergy, TaskBeta


def main(backend):
    assert keras.backend.backend() == backend, keras.backend.backend()
    package = pathlib.Path(keras_betakd.__file__).parent
    assert package.is_relative_to(sys.prefix), f"not the installed wheel: {package}"
    assert (package / "py.typed").exists(), "the wheel is not typed"

    teacher, student = (
        keras.Sequential([keras.Input((3, 4)), keras.layers.Dense(5)]) for _ in range(2)
    )
    distiller = BetaKDDistiller(teacher, student, CosineProbsEnergy(), TaskBeta())
    distiller.compile(optimizer=keras.optimizers.Adam(0.01))
    x = np.random.default_rng(0).normal(size=(8, 3, 4)).astype("float32")
    y = np.zeros((8, 3), "int32")
    logs = distiller.fit(x, y, batch_size=4, verbose=0).history
    assert int(distiller.optimizer.iterations) == 2
    assert all(np.isfinite(value[-1]) for value in logs.values()), logs
    sys.stdout.write(f"{backend}: two steps, {logs}\n")


if __name__ == "__main__":
    main(sys.argv[1])
