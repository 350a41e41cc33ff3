"""Writes the files of `golden/archive_c98251b`, for `test_archives.py`.

Run at commit c98251b, from its folder `tests`, once on each of two backends (with the
name that an argument had there, see `archive_distiller.task_weighting`):

    KERAS_BACKEND=torch python make_archives.py
    KERAS_BACKEND=jax python make_archives.py

The first trains and writes everything but the weights file of JAX and TensorFlow. The
second reads the first one's archive and writes that. A later version writes files of
its own format, which would prove nothing.
"""

import json
import os

import keras
from archive_distiller import (
    ARCHIVE,
    FOLDER,
    NUMBERS,
    WEIGHTS,
    build_distiller,
    load_archive,
    numbers_of,
    records,
)

import keras_betakd

STEPS = 3


def expect_every_kind(distiller):
    """Raises an error if the distiller lacks an energy or a beta of the library."""
    used = {type(e) for e in distiller.energies.values()}
    used |= {type(b) for b in distiller.betas.values()}
    bases = keras_betakd.Energy, keras_betakd.Beta
    for kind in vars(keras_betakd).values():
        if isinstance(kind, type) and issubclass(kind, bases) and kind not in bases:
            assert kind in used, kind


def trained():
    """Returns the distiller after some steps; no state has its initial value."""
    keras.utils.set_random_seed(0)
    distiller = build_distiller(start=2)
    expect_every_kind(distiller)
    for _ in range(STEPS):
        distiller.train_on_batch(records())
    return distiller


def main():
    if keras.backend.backend() != "torch":
        load_archive().save_weights(WEIGHTS)
        return
    os.makedirs(FOLDER, exist_ok=True)
    distiller = trained()
    distiller.save(ARCHIVE)
    distiller.save_weights(WEIGHTS)
    with open(NUMBERS, "w") as file:
        json.dump(numbers_of(load_archive()), file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
