"""`TrainingBackup`: saves the state of a training, so that a killed run can resume."""

import contextlib
import os
import pathlib
import re
from typing import Any

import keras

from keras_betakd.distillation.saving import load_state, save_state
from keras_betakd.distillation.weights_files import DamagedFileError, is_whole
from keras_betakd.files import atomic_write
from keras_betakd.folders import FolderOwner

_NAME = re.compile(r"epoch_(\d+)\.weights\.h5")


class TrainingBackup(keras.callbacks.Callback):
    """Saves the state of a training after each epoch, so that a killed run can resume.

    A resumed run has the losses of an uninterrupted one: the backup restores weights,
    LoRA factors, betas, the optimizer with its schedule, the state of energies,
    dropout's random state and the order of the data. Neither a kill nor a full disk can
    lose the last state: each is one file with a digest, written atomically under a name
    with its number of epochs, before the previous one is removed.
    (`keras.callbacks.BackupAndRestore` works too, but writes weights and epoch into two
    files: a kill between them repeats an epoch.)

    Only files that this backup wrote or restored are ever removed, and a training does
    not begin below the epoch of another file in the folder. While it runs, no other
    process can use the folder.

    The order of the data is restored for raw records and for data sets with a
    `start_epoch` method, such as those of `keras_betakd.data`, if the seed is the same
    (`keras.utils.set_random_seed`). `keras_betakd.data.EpochParts` divides an epoch
    that takes days into parts. For a plain Keras model everything is restored but
    dropout's random state, which Keras does not save in weights files.

    Args:
        directory: folder for the backup alone; created if it does not exist. The last
            file stays when training ends.

    Raises:
        OSError: the folder cannot be written; raised by the constructor.
        FolderInUseError: another process uses the folder; raised by `restore` and when
            training begins.
        ValueError: training begins in a folder with a later state that was not
            restored.

    Example:

    ```python
    backup = TrainingBackup("output/backup")
    epoch = backup.restore(distiller)  # 0 the first time
    distiller.fit(dataset, epochs=10, initial_epoch=epoch, callbacks=[backup])
    ```
    """

    def __init__(self, directory: str | os.PathLike):
        super().__init__()
        self.directory = pathlib.Path(directory)
        self._owner: FolderOwner | None = None
        self._ours: set[str] = set()  # the files that this backup may remove
        self._checked = False
        probe = self.directory / "can_be_written"
        with atomic_write(probe) as draft:
            draft.touch()
        probe.unlink(missing_ok=True)

    def restore(self, model: keras.Model) -> int:
        """Loads the last state into a compiled model, if there is one.

        Args:
            model: the compiled model.

        Returns:
            The number of epochs of that state, for `initial_epoch`; 0 if there is none.

        Raises:
            FolderInUseError: another process uses the folder.
            ValueError: the file is damaged, or of another model; model and optimizer
                are then as they were before. The message names the latest state beside
                it that is whole.
        """
        if not model.compiled:
            raise ValueError(
                "Call `compile` before `restore`: a state has the optimizer's, too."
            )
        with self._owned():
            return self._restore(model)

    def _restore(self, model):
        saved = self._saved()
        if not saved:
            return 0
        epoch = max(saved)
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        try:
            load_state(model, saved[epoch])
        except DamagedFileError as error:
            raise DamagedFileError(
                f"{error} To train on, {_removal(epoch, saved)}."
            ) from error
        except ValueError as error:
            raise ValueError(
                f"'{saved[epoch]}' does not hold the state of this model: {error} "
                "Build the model as it was when the file was written, or "
                f"{_removal(epoch, saved)}."
            ) from error
        self._ours |= {path.name for path in saved.values()}
        return epoch

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._owner = FolderOwner(self.directory, type(self).__name__)
        self._checked = False

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        # Keras does not tell `on_train_begin` at which epoch a training begins.
        if not self._checked:
            self._expect_nothing_above(epoch)
            self._checked = True

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        try:
            with self._owned() as owner:
                owner.expect()
                self._write(self.directory / f"epoch_{epoch + 1}.weights.h5")
        except BaseException:
            self.on_train_end()  # Keras does not call it then
            raise

    def _write(self, path):
        before = self._saved()
        save_state(self.model, path)
        self._ours.add(path.name)
        for other in before.values():
            if other != path and other.name in self._ours:
                other.unlink(missing_ok=True)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._owner is not None:
            self._owner.release()
            self._owner = None

    def _owned(self):
        """A context in which the folder has an owner: that of the training, if any."""
        if self._owner is not None:
            return contextlib.nullcontext(self._owner)
        return FolderOwner(self.directory, type(self).__name__)

    def _expect_nothing_above(self, epoch):
        saved = self._saved()
        others = [e for e, path in saved.items() if path.name not in self._ours]
        if others and max(others) > epoch:
            raise ValueError(
                f"The folder '{self.directory}' holds {saved[max(others)].name} of an "
                f"earlier training, and this one begins after {epoch} epochs. To go on "
                "with the earlier one, call `restore(model)` and pass the number that "
                "it returns to `fit` as `initial_epoch`; otherwise give an empty "
                "folder, or remove the file."
            )

    def _saved(self):
        """The backup files by their number of epochs."""
        found = {_NAME.fullmatch(path.name): path for path in self.directory.iterdir()}
        return {int(match[1]): path for match, path in found.items() if match}


def _removal(epoch, saved):
    """What to remove so that a training can go on without the file of an epoch.

    Args:
        epoch: the latest in `saved`.
        saved: dict of the files by their number of epochs.
    """
    damaged = ["the file"]
    for earlier in sorted(saved, reverse=True)[1:]:
        name = saved[earlier].name
        if is_whole(saved[earlier]):
            return (
                f"remove {' and '.join(damaged)} to go on from {name}, which is whole"
            )
        damaged.append(f"{name}, which is damaged, too,")
    return f"remove {' and '.join(damaged)} to start anew"
