"""What a killed training goes on from."""

import pathlib
import re

import keras

from keras_betakd.saving import TeacherKeeping, saved_bytes
from keras_betakd.whole_files import written_whole

_NAME = re.compile(r"epoch_(\d+)\.weights\.h5")


class TrainingBackup(keras.callbacks.Callback):
    """Keeps a training's state after each epoch, so that a killed run can go on.

    The losses that follow are those of a run that was never broken: weights, betas,
    the optimizer with its schedule, the state of energies, dropout's random state and
    the order of the data are brought back. The last good state is never lost, whenever
    a kill comes and however full the disk is: each is one file, written whole under a
    name that says how many epochs it has seen, before the one before is removed.
    (`keras.callbacks.BackupAndRestore` works too, but writes weights and epoch into
    two files: a kill between them repeats an epoch.)

    The order of the data comes back for raw records and for data sets with a
    `start_epoch` method, as those of `keras_betakd.data` are, if the seed is the same
    (`keras.utils.set_random_seed`). An epoch that takes days can be cut into parts by
    `keras_betakd.data.EpochParts`. Of a plain Keras model everything comes back but
    dropout's random state, which is in no weights file of Keras'.

    Args:
        directory: folder of its own; made if it is not there. Its file stays when
            training ends.

    Raises:
        OSError: the folder cannot be written, found when this is made.

    Example:

    ```python
    backup = TrainingBackup("output/backup")
    epoch = backup.restore(distiller)  # 0 the first time
    distiller.fit(dataset, epochs=10, initial_epoch=epoch, callbacks=[backup])
    ```
    """

    def __init__(self, directory):
        super().__init__()
        self.directory = pathlib.Path(directory)
        probe = self.directory / "can_be_written"
        with written_whole(probe) as draft:
            draft.touch()
        probe.unlink()

    def restore(self, model):
        """Loads the last state into a compiled model, if there is one.

        Returns:
            How many epochs it has seen; 0 if there is none.

        Raises:
            ValueError: the file is damaged, or of another model.
        """
        saved = self._saved()
        if not saved:
            return 0
        epoch = max(saved)
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        try:
            model.load_weights(saved[epoch])
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"'{saved[epoch]}' does not hold the state of this model: {error}. "
                "Build the model as it was when the file was written, or remove the "
                "file to start anew."
            ) from error
        return epoch

    def on_epoch_end(self, epoch, logs=None):
        before = self._saved()
        path = self.directory / f"epoch_{epoch + 1}.weights.h5"
        if isinstance(self.model, TeacherKeeping):  # which writes files whole
            self.model.save_weights(path)
        else:
            with written_whole(path, size=saved_bytes(self.model)) as draft:
                self.model.save_weights(draft)
        for other in before.values():
            if other != path:
                other.unlink()

    def _saved(self):
        """The files by their numbers of epochs."""
        found = {_NAME.fullmatch(path.name): path for path in self.directory.iterdir()}
        return {int(match[1]): path for match, path in found.items() if match}
