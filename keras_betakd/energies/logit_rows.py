"""Logits of a block of positions, with softmax and log-ratios computed only once."""

from keras import ops

from keras_betakd.backends import at_least, entries_at, log_of_largest_share

# Stands for log 0: exp() of it is 0, and it is finite, so that 0 times it is 0.
LOG_ZERO = -1e30


class LogitRows:
    """Logits (N, V) of one model, which several energies read.

    Each result is computed on first use, once per temperature, and kept.

    Args:
        logits: (N, V) float32.
        labels: (N,) class ids, for the energies that need them.
    """

    def __init__(self, logits, labels=None):
        self.logits = logits
        self.labels = labels
        self._made = {}

    def probabilities(self, temperature=1.0):
        """softmax(logits / temperature)."""
        return self._once(
            ("probabilities", temperature),
            lambda: ops.softmax(self._tempered(temperature), axis=-1),
        )

    def log_probabilities(self, temperature=1.0):
        """log softmax(logits / temperature), `LOG_ZERO` where a class is excluded."""
        return self._once(
            ("log_probabilities", temperature),
            lambda: at_least(
                ops.log_softmax(self._tempered(temperature), axis=-1), LOG_ZERO
            ),
        )

    def log_probability_of(self, classes):
        """log softmax(logits) at one class of each row: ids (N,) to (N,)."""
        largest, log_share = self._peak(1.0)
        return (entries_at(self.logits, classes) - largest[:, 0]) + log_share[:, 0]

    def log_ratio(self, other, temperature=1.0):
        """log(probabilities / other's probabilities), (N, V).

        About `LOG_ZERO`, or its negative, where one of the two excludes a class; of an
        absolute value of at most log V where both do.

        Args:
            other: `LogitRows` of the same shape.
        """
        return self._once(
            ("log_ratio", other, temperature),
            lambda: self._log_ratio(other, temperature),
        )

    def _log_ratio(self, other, temperature):
        # Without log-softmaxes, each of which costs a CPU as much as six of these
        # passes. As in them, the largest logit is subtracted first: the rounding error
        # of a probable class is then small, however far the logits are from 0.
        largest, log_share = self._peak(temperature)
        their_largest, their_log_share = other._peak(temperature)
        ratio = at_least(self._tempered(temperature) - largest, LOG_ZERO)
        ratio -= at_least(other._tempered(temperature) - their_largest, LOG_ZERO)
        ratio += log_share - their_log_share
        return ratio

    def largest(self, temperature=1.0):
        """The largest of logits / temperature, (N, 1)."""
        return self._once(
            ("largest", temperature),
            lambda: ops.max(self._tempered(temperature), axis=-1, keepdims=True),
        )

    def _peak(self, temperature):
        """Largest tempered logit and the log of its probability, (N, 1) each."""
        return self._once(("peak", temperature), lambda: self._make_peak(temperature))

    def _make_peak(self, temperature):
        logits, largest = self._tempered(temperature), self.largest(temperature)
        return largest, log_of_largest_share(
            logits, largest, lambda: self.probabilities(temperature)
        )

    def _tempered(self, temperature):
        if temperature == 1.0:
            return self.logits
        return self._once(("logits", temperature), lambda: self.logits / temperature)

    def _once(self, name, make):
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]


class ProbabilityRows:
    """The probabilities p of the teacher and q of the student, for closed forms.

    All are (N, V) float32.

    Args:
        teacher, student: `LogitRows` of the same shape (N, V).
        temperature: T of p = softmax(logits / T) and of q.
    """

    def __init__(self, teacher, student, temperature=1.0):
        self._teacher, self._student = teacher, student
        self._temperature = temperature

    @property
    def p(self):
        return self._teacher.probabilities(self._temperature)

    @property
    def q(self):
        return self._student.probabilities(self._temperature)

    @property
    def largest(self):
        """The teacher's and the student's largest logit / T, (N, 1) each."""
        models = self._teacher, self._student
        return [rows.largest(self._temperature) for rows in models]

    def log_p(self):
        """log p, with `LOG_ZERO` in place of -inf."""
        return self._teacher.log_probabilities(self._temperature)

    def log_ratio(self):
        """log(q / p), about `LOG_ZERO` or its negative where one of the two is 0."""
        return self._student.log_ratio(self._teacher, self._temperature)
