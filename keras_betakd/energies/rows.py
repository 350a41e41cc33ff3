"""`LogitRows`: logits of some positions, and what several energies make of them."""

from keras import ops

from keras_betakd.energies.closed_forms import LOG_ZERO, Rows


class LogitRows:
    """Logits (N, V), with their (log-)probabilities made once per temperature.

    Args:
        logits: (N, V) float32.
        labels: (N,) class ids, for the energies that need them.
    """

    def __init__(self, logits, labels=None):
        self.logits = logits
        self.labels = labels
        self._log_probabilities = {}
        self._probabilities = {}

    def log_probabilities(self, temperature=1.0):
        """log softmax(logits / temperature), `LOG_ZERO` where a class is excluded."""
        if temperature not in self._log_probabilities:
            logs = ops.log_softmax(self._tempered(temperature), axis=-1)
            self._log_probabilities[temperature] = ops.maximum(logs, LOG_ZERO)
        return self._log_probabilities[temperature]

    def probabilities(self, temperature=1.0):
        """softmax(logits / temperature)."""
        if temperature not in self._probabilities:
            tempered = self._tempered(temperature)
            self._probabilities[temperature] = ops.softmax(tempered, axis=-1)
        return self._probabilities[temperature]

    def _tempered(self, temperature):
        return self.logits if temperature == 1.0 else self.logits / temperature


def probability_rows(teacher, student, temperature=1.0):
    """The `Rows` of closed forms from teacher's and student's `LogitRows`."""
    return Rows(
        log_p=teacher.log_probabilities(temperature),
        log_q=student.log_probabilities(temperature),
        p=teacher.probabilities(temperature),
        q=student.probabilities(temperature),
    )
