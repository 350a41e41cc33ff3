"""`RunningMean`: the mean energy of the training batches, kept in a layer."""

from keras import ops

from keras_betakd.objective import any_row, weighted_mean


class RunningMean:
    """A bias-corrected exponential moving average of the batches' mean energy.

    Batches without a supervised token, or whose energy is not finite, do not change it.

    Args:
        layer: the layer that gets its two variables, which are not trainable.
        momentum: weight of the past, at least 0 and below 1. Defaults to 0.99.
    """

    def __init__(self, layer, momentum=0.99):
        self.momentum = momentum
        options = {"shape": (), "initializer": "zeros", "trainable": False}
        options["aggregation"] = "only_first_replica"  # all compute the same value
        # sum of m^(t-i) * l_i, and of m^(t-i) alone: their ratio is the mean.
        self.energy_sum = layer.add_weight(name="energy_sum", **options)
        self.weight_sum = layer.add_weight(name="weight_sum", **options)

    def value(self, initial):
        """The mean, without gradient.

        Args:
            initial: its value before the first batch.
        """
        known = ops.convert_to_tensor(self.weight_sum)
        mean = self.energy_sum / ops.where(known > 0, known, 1.0)
        return ops.stop_gradient(ops.where(known > 0, mean, initial))

    def update(self, energy, weights):
        """Adds a batch.

        Args:
            energy: (B, K), in the units of the energy.
            weights: (B, K), from `keras_betakd.objective.row_weights`.
        """
        mean = ops.stop_gradient(weighted_mean(energy, weights))
        # One infinite energy would stay in the mean forever.
        usable = ops.logical_and(any_row(weights), ops.isfinite(mean))
        mean = ops.where(usable, mean, 0.0)
        counted = ops.cast(usable, "float32")
        past = 1.0 - counted * (1.0 - self.momentum)
        self.energy_sum.assign(past * self.energy_sum + counted * mean)
        self.weight_sum.assign(past * self.weight_sum + counted)
