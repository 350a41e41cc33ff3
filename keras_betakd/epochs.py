"""The order of the data: a matter of the seed and of the epoch's number alone."""

import keras


class EpochOrder(keras.callbacks.Callback):
    """Starts each epoch's data at its number, also after a training was broken off.

    Args:
        dataset: has `epoch`, the number of the epoch it would deal next, and
            `start_epoch(number)`.
        initial_epoch: that of `fit`.
    """

    def __init__(self, dataset, initial_epoch):
        super().__init__()
        self.dataset = dataset
        # A data set that was used before goes on, instead of repeating its first epoch.
        self.ahead = max(0, dataset.epoch - initial_epoch)

    def on_epoch_begin(self, epoch, logs=None):
        self.dataset.start_epoch(self.ahead + epoch)
