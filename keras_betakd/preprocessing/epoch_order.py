"""Begins the epochs of data by their numbers, and ends what reads it ahead."""

import contextlib

import keras

from keras_betakd.preprocessing.epochs import FormattedDataset, StepCount


class EpochOrder(keras.callbacks.Callback):
    """Begins each epoch of the training data by its number, and each validation.

    A training that is resumed then reads the data in the order of one that was never
    interrupted.

    Args:
        dataset: the `FormattedDataset` to train on; `None` for arrays.
        validation: the `FormattedDataset` to evaluate or predict; `None` if there is
            none, or for arrays.
    """

    def __init__(self, dataset=None, validation=None):
        super().__init__()
        self.dataset = dataset
        self.validation = validation

    def set_params(self, params):
        super().set_params(params)
        if params and isinstance(params.get("steps"), StepCount):
            # Passed on to all callbacks, among them the progress bar.
            params["steps"] = params["steps"].dataset.shown_steps

    def on_epoch_begin(self, epoch, logs=None):
        if self.dataset is not None:
            self.dataset.start_epoch(epoch)

    def on_train_end(self, logs=None):
        if self.dataset is not None:
            self.dataset.end_training()

    def on_test_begin(self, logs=None):
        if self.validation is not None:
            self.validation.restart()

    def on_predict_begin(self, logs=None):
        self.on_test_begin()


@contextlib.contextmanager
def closed(*datasets):
    """Within, data sets may have threads that read ahead; they end with it."""
    try:
        yield
    finally:
        for dataset in datasets:
            if isinstance(dataset, FormattedDataset):
                dataset.close()
