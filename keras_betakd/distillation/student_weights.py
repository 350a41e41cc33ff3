"""`load_student_weights`: the student out of a distiller's file, without teacher."""

import functools
import os

import keras

from keras_betakd.distillation.lora_state import unmerged
from keras_betakd.distillation.weights_files import (
    check_weights,
    lists_layers,
    names_in,
)


def load_student_weights(student: keras.Model, path: str | os.PathLike) -> None:
    """Loads the student out of a distiller's file, without teacher and distiller.

    Layers whose LoRA factors are in the file get LoRA of that rank, if they have none
    yet. So the student of a training that was killed can be published, from the last
    file of a `TrainingBackup`.

    Args:
        student: the student, built as it was for the training.
        path: a file that `BetaKDDistiller.save_weights`, `save`, `ModelCheckpoint` or a
            `TrainingBackup` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or of another student; the student is as it was
            before.

    Example:

    ```python
    student = keras_betakd.models.load_model("gemma3_instruct_4b")
    keras_betakd.load_student_weights(student, "output/backup/epoch_3.weights.h5")
    keras_betakd.models.save_preset(student, "my_student")
    ```
    """
    names = names_in(path)
    holder = _StudentOnly(student, lists_layers(path, names))
    load = functools.partial(holder.load_weights, path)
    lacking: list[tuple] = []
    with unmerged(student, lacking=lacking):
        check_weights(load, path, names, student=student)
    for layer, rank, alpha in lacking:
        layer.enable_lora(rank, lora_alpha=alpha)
    with unmerged(student):
        load()


class _StudentOnly(keras.Model):
    """Stands in for a distiller, of which it has the student alone."""

    def __init__(self, student, lists_layers):
        super().__init__()
        self.student = student
        self.lists_layers = lists_layers
        self.built = True

    @property
    def layers(self):
        if not self.lists_layers:
            raise RuntimeError("The student is found by its attribute.")
        return [self.student]

    def load_own_variables(self, store):
        """Leaves the distiller's own state in the file."""
