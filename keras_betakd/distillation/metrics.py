"""What training shows: cross-entropy, accuracy, every energy and every beta by name."""

import keras
from keras import ops

from keras_betakd.distribution.replicas import over_replicas
from keras_betakd.objective import weighted_mean


class Tracking:
    """The part of the distiller that reports.

    Mixed into `BetaKDDistiller`, in front of `keras.Model`.
    """

    def _make_trackers(self):
        # Made here and not in `build`: JAX needs every metric before it traces. Keras'
        # own mean of the loss would average in a batch that is not finite, and counts
        # examples that have no weight.
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self.task_loss_tracker = keras.metrics.Mean(name="task_loss")
        self.accuracy_tracker = keras.metrics.Mean(name="accuracy")
        self._reports_accuracy = False
        self.energy_trackers = {n: keras.metrics.Mean(name=n) for n in self.energies}
        self.beta_trackers = {
            name: keras.metrics.Mean(name=f"{name}_beta") for name in self._all_betas()
        }
        self.schedule_trackers = {
            name: keras.metrics.Mean(name=f"{name}_{schedule.shown_as}")
            for name, schedule in self.schedules.items()
        }

    def _track(self, total, terms, y_pred):
        weights, energy_weights = y_pred["weights"], y_pred["energy_weights"]
        count = self._count(weights)
        self.loss_tracker.update_state(ops.where(count > 0, total, 0.0), count)
        self.task_loss_tracker.update_state(weighted_mean(terms.task, weights), count)
        for name, value in terms.energies.items():
            mean = weighted_mean(value, energy_weights[name])
            count = self._count(energy_weights[name])
            self.energy_trackers[name].update_state(mean, count)
        for name, schedule in self.schedules.items():
            self.schedule_trackers[name].update_state(schedule.shown())
        for name, value in y_pred["log_beta"].items():
            weights = energy_weights.get(name, y_pred["weights"])
            mean = weighted_mean(ops.exp(value), weights)
            self.beta_trackers[name].update_state(mean, self._count(weights))

    def _count(self, weights):
        """How many examples, or tokens, a mean with these weights is of."""
        counted = ops.cast(weights != 0, "float32")
        if self.reduction == "example":
            counted = ops.max(counted, axis=1)
        return over_replicas(ops.sum(counted))

    def _track_accuracy(self, correct, sample_weight, weights):
        counted = ops.reshape(sample_weight, ops.shape(weights))
        counted = ops.where(weights != 0, counted, 0)
        total = over_replicas(ops.sum(counted))
        right = over_replicas(ops.sum(correct * counted))
        self.accuracy_tracker.update_state(ops.divide_no_nan(right, total), total)

    @property
    def metrics(self):
        hidden = None if self._reports_accuracy else self.accuracy_tracker
        # Keras' own mean of the loss counts rows, those without weight too.
        others = [m for m in super().metrics if m.name != "loss" and m is not hidden]
        return [self.loss_tracker, *others]

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        weights = y_pred["weights"]
        y = ops.where(weights != 0, ops.reshape(y, ops.shape(weights)), 0)
        counted = ops.reshape(x["sample_weight"], ops.shape(weights))
        return super().compute_metrics(x, y, y_pred["student"], counted)
