"""`Trackers`: reports loss, cross-entropy, accuracy, every energy and every beta."""

import keras
from keras import ops

from keras_betakd.distribution.replicas import over_replicas, replica_count
from keras_betakd.objective import best_term, weighted_mean

# The weight of a beta's value where no row counts: too small to change a mean of rows.
_LEAST = 1e-20


class Trackers:
    """The distiller's own metrics, each a mean over the rows that were counted.

    They are made at construction and not when the distiller is built, since JAX needs
    every metric before it traces. The distiller assigns them to its attributes, where
    Keras tracks them.

    Args:
        energies: dict of energies; each is reported under its name.
        betas: dict of beta layers; each is reported under its name and `_beta`.
        schedules: dict of `EnergySchedule`s; each is reported under its name and
            `shown_as`.
        reduction: `"example"` or `"token"`, what a mean over a batch is weighted by.

    Attributes:
        loss, task_loss, accuracy: `keras.metrics.Mean`.
        objective: `Objective`.
        energies, betas, schedules: dicts of `keras.metrics.Mean` by name. A beta's mean
            is over the rows that count; where none does, over all rows.
    """

    def __init__(self, energies, betas, schedules, reduction):
        self.reduction = reduction
        self._betas = betas
        self._schedules = schedules
        self.loss = keras.metrics.Mean(name="loss")
        self.task_loss = keras.metrics.Mean(name="task_loss")
        self.accuracy = keras.metrics.Mean(name="accuracy")
        self.objective = Objective(self._objective)
        self.energies = {name: keras.metrics.Mean(name=name) for name in energies}
        self.betas = {name: keras.metrics.Mean(name=f"{name}_beta") for name in betas}
        self.schedules = {
            name: keras.metrics.Mean(name=f"{name}_{schedule.shown_as}")
            for name, schedule in schedules.items()
        }

    def directions(self):
        """Dict of which values of a metric are better, by its name.

        `"min"`, `"max"`, or `None` where neither says anything. A beta is the larger,
        the nearer the student is to the teacher.
        """
        smaller = self.loss, self.task_loss, self.objective, *self.energies.values()
        larger = self.accuracy, *self.betas.values()
        return {
            **{metric.name: None for metric in self.schedules.values()},
            **{metric.name: "min" for metric in smaller},
            **{metric.name: "max" for metric in larger},
        }

    def objective_of(self, values, label_share=1.0):
        """The loss at the best betas (see `Objective`), from means by their names.

        Args:
            values: dict of numbers by metric: `"task_loss"`, and the energies.
            label_share: the share of the answers' weight that has labels.
        """
        task = label_share * self._best("task", values["task_loss"])
        return task + sum(self._best(name, values[name]) for name in self.energies)

    def _objective(self):
        """The objective of the means of the epoch so far; 0 where no row counts."""
        total = 0.0
        for name, metric in {"task": self.task_loss, **self.energies}.items():
            term = self._best(name, metric.result())
            if name == "task":  # its mean is over the labels, its term over all answers
                term = term * ops.divide_no_nan(metric.count, self.loss.count)
            total = total + ops.where(metric.count > 0, term, 0.0)
        return total

    def _best(self, name, value):
        beta = self._betas.get(name)
        return value if beta is None else best_term(value, beta.dim, beta.bounds)

    def update(self, total, terms, outputs, means, x, accuracy):
        """Adds a batch.

        Args:
            total: the loss of the global batch.
            terms: its `HeadLoss`.
            outputs: its `DistillationOutputs`, whose weights are zero where the batch
                is not finite, so that it enters no mean.
            means: `mean_weights` of them.
            x: the batch, with its `"sample_weight"` and `"task_weight"` if it has them.
            accuracy: whether the student's accuracy at the labels is reported.
        """
        given = given_weights(x, outputs.weights["answers"])
        compared = {*outputs.feature_values, *outputs.image_rows}
        counts = {
            name: self._count(weights, given, name, by_label=name not in compared)
            for name, weights in outputs.weights.items()
        }
        count = counts["answers"]
        self.loss.update_state(ops.where(count > 0, total, 0.0), count)
        if accuracy:  # labels of a task weight of 0 count nothing
            self._update_accuracy(terms.correct, given["task"])
        self._add(self.task_loss, terms.task, means["task"], counts["task"])
        for name, value in terms.energies.items():
            self._add(self.energies[name], value, means[name], counts[name])
        for name, schedule in self._schedules.items():
            self.schedules[name].update_state(schedule.shown())
        for name, value in outputs.log_beta.items():
            self._add_beta(self.betas[name], ops.exp(value), means[name], counts[name])

    def _update_accuracy(self, correct, counted):
        total = over_replicas(ops.sum(counted))
        right = over_replicas(ops.sum(correct * counted))
        self.accuracy.update_state(ops.divide_no_nan(right, total), total)

    def _add(self, metric, values, weights, count):
        metric.update_state(weighted_mean(values, weights), count)

    def _add_beta(self, metric, beta, weights, count):
        """Adds a beta; its mean over all rows, hardly weighted, where no row counts."""
        everywhere = over_replicas(ops.mean(beta)) / replica_count()
        known = ops.isfinite(everywhere)
        value = ops.where(known, everywhere, 0.0)
        metric.update_state(
            ops.where(count > 0, weighted_mean(beta, weights), value),
            ops.where(count > 0, count, ops.where(known, _LEAST, 0.0)),
        )

    def _count(self, weights, given, name, by_label):
        """What the rows of a term weigh in the global batch, before they add up to one.

        An epoch's mean is then that of all its examples, or tokens, by their weights,
        whatever the batch size, as of Keras' weighted metrics.

        Args:
            weights: the row weights of the term, (B, N).
            given: what `given_weights` returned.
            name: the name of the term.
            by_label: whether the term's rows are those of the labels.
        """
        labels = given.get(name, given["answers"])
        counted = ops.cast(weights != 0, "float32")
        if not by_label:
            counted = ops.max(counted, axis=1, keepdims=True)
        labels = labels * counted
        if self.reduction == "example":
            rows = given["answers"] if name == "task" else labels
            tokens = ops.sum(ops.cast(rows != 0, "float32"), axis=1, keepdims=True)
            labels = labels / ops.maximum(tokens, 1.0)
        return over_replicas(ops.sum(labels))


def given_weights(x, weights):
    """The weights of a batch's labels as they were given, where `weights` is not zero.

    Args:
        x: the batch, with its `"sample_weight"` and `"task_weight"` if it has them.
        weights: (B, K) row weights.

    Returns:
        Dict of (B, K): `"answers"`, the sample weights, and `"task"`, these times the
        task weights.
    """
    size, found = ops.shape(weights)[0], {}
    given = ops.cast(weights != 0, "float32")
    for name, key in (("answers", "sample_weight"), ("task", "task_weight")):
        if x.get(key) is not None:
            factor = ops.reshape(ops.cast(x[key], "float32"), (size, -1))
            # Of what (size, -1) hides from TensorFlow, Keras' metrics need the sizes.
            given = ops.reshape(given * factor, ops.shape(weights))
        found[name] = given
    return found


class Objective(keras.metrics.Metric):
    """The loss at the best betas: a number to monitor that no beta moves alone.

        objective = CE + sum_k min over beta of [ beta * l_k - (d_k / 2) * log beta ]

    with CE and l_k the means of the epoch, and each beta between its bounds: there a
    term is (d_k / 2) * (1 + log(2 l_k / d_k)), as
    `keras_betakd.objective.best_term` has it. A `FixedBeta` has one value only, and its
    term is that of the loss; where the cross-entropy has a beta, its term is one of the
    sum. A predicted beta counts as if it were one number. Regularisers are left out.

    It has no variables of its own, and reads those of the means.

    Args:
        value: function without arguments that returns it.
    """

    def __init__(self, value, name="objective"):
        super().__init__(name=name)
        self._value = value

    def result(self):
        return self._value()
