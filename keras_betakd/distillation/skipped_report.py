"""Reports records that were too long and left out."""

import warnings

import keras

from keras_betakd.preprocessing.checks import NAMED


class SkippedReport(keras.callbacks.Callback):
    """Warns of records left out, once at the end of an epoch or an evaluation.

    Args:
        preprocessor: the distiller's preprocessor, or `None`.
        at_epochs: whether it runs in `fit`; in `evaluate` if not.
    """

    def __init__(self, preprocessor, at_epochs):
        super().__init__()
        self.preprocessor = preprocessor
        self.at_epochs = at_epochs

    def on_epoch_end(self, epoch, logs=None):
        report_skipped(self.preprocessor, f"epoch {epoch + 1}")

    def on_test_end(self, logs=None):
        if not self.at_epochs:
            report_skipped(self.preprocessor, "this evaluation")

    def on_predict_end(self, logs=None):
        report_skipped(self.preprocessor, "this prediction")


def report_skipped(preprocessor, when):
    """Warns of what a preprocessor has left out since the last report."""
    skipped = getattr(preprocessor, "skipped", None)
    if not skipped:
        return
    names, first = list(skipped), next(iter(skipped.values()))
    more = ", ..." if len(names) > NAMED else ""
    warnings.warn(
        f"Records left out in {when}, since they do not fit: {len(names)} "
        f"({', '.join(names[:NAMED])}{more}). The first: {first}",
        RuntimeWarning,
        stacklevel=2,
    )
    skipped.clear()
