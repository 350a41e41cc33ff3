"""`AnswerReport`: tells what the answers of a student are like, epoch by epoch."""

import warnings

import keras

from keras_betakd.on_policy.answers import report_of

_FEWEST_ENDED = 0.1


class AnswerReport(keras.callbacks.Callback):
    """Adds `report_of` the answers to the logs, and warns of a student that collapses.

    Args:
        data: the `StudentAnswers`.
    """

    def __init__(self, data):
        super().__init__()
        self.data = data
        self._epochs = 0
        self._warned = False

    def on_epoch_end(self, epoch, logs=None):
        found = report_of(self.data.last)
        if logs is not None:
            logs.update(found)
        self._epochs += 1
        ended = found["answers_ended"]
        if self._epochs > 1 and ended < _FEWEST_ENDED and not self._warned:
            self._warned = True
            warnings.warn(
                f"Of the student's own answers in epoch {epoch + 1}, {ended:.0%} ended "
                f"by themselves, with {found['answer_tokens']:.1f} tokens on average. "
                "It may repeat itself without end. Look at `StudentAnswers.last`; "
                "train on given answers first, give a smaller `on_policy` or learning "
                "rate, or raise `max_new_tokens` if answers are longer than it.",
                stacklevel=2,
            )
