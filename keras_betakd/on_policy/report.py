"""`StudentReport`: tells what a student makes of its training data, epoch by epoch."""

import warnings

import keras


class StudentReport(keras.callbacks.Callback):
    """Adds the report of a `StudentData` to the logs, and hands on its warning, once.

    Args:
        data: the `StudentData`.
    """

    def __init__(self, data):
        super().__init__()
        self.data = data
        self._epochs = 0
        self._warned = False

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs.update(self.data.report())
        self._epochs += 1
        warning = self.data.warning(epoch, self._epochs)
        if warning is not None and not self._warned:
            self._warned = True
            warnings.warn(warning, stacklevel=2)
