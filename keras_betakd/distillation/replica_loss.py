"""How replicas that share a batch train as one: the whole loss, and one gradient."""

from keras import ops

from keras_betakd.distribution.replicas import (
    expect_process_group,
    gradients_are_summed,
    over_replicas,
    reduced_gradients,
    replica_count,
)
from keras_betakd.objective import log_beta_penalty


class ReplicaJoining:
    """The part of the distiller that makes a whole of what its replicas compute.

    Mixed into `BetaKDDistiller`, in front of `keras.Model`. The weights of all replicas
    add up to one (`keras_betakd.objective.normalised`), so the sum of their totals is
    the batch's, and the sum of their gradients its gradient.
    """

    _watched = staticmethod(lambda loss: loss)

    def make_train_function(self, force=False):
        # Each `fit` calls this; since the last one, weights may have been loaded.
        expect_process_group()
        variables = self.variables + self.optimizer.variables
        self._watched = reduced_gradients(self.trainable_variables, variables)
        return super().make_train_function(force)

    def _joined(self, total, y_pred):
        """The loss of the whole batch.

        Args:
            total: cross-entropy and energies of this replica's rows.
            y_pred: what `call` returned.

        Returns:
            `(loss, whole)`: from `loss`, once it is `_watched`, the engine makes the
            gradient of the whole batch, whose loss `whole` is.
        """
        replicas = replica_count()
        if replicas == 1:
            # The -(d / 2) log beta of each beta layer, and regularisation.
            loss = total + self._sum(self.losses)
            return loss, loss
        for name, beta in self._all_betas().items():
            weights = y_pred["energy_weights"].get(name, y_pred["weights"])
            penalty = log_beta_penalty(y_pred["log_beta"][name], weights, beta.dim)
            total = total + penalty
        rest = self._sum(self._losses_of_no_beta())
        whole = over_replicas(total)
        if gradients_are_summed():
            return total + rest / replicas, whole + rest
        # The value of the whole; a gradient whose mean is the sum of the parts'.
        part = replicas * total
        loss = part + ops.stop_gradient(whole - part) + rest
        return loss, whole + rest

    def _losses_of_no_beta(self):
        """Regularisation; the betas' own are of one list for all replicas."""
        ours = [loss for beta in self._all_betas().values() for loss in beta.losses]
        others = [x for x in self.losses if not any(x is loss for loss in ours)]
        # A regulariser computes its loss whenever it is asked, `add_loss` kept one.
        added = [x for x in others if any(x is loss for loss in self.losses)]
        if added and gradients_are_summed():
            raise ValueError(
                "Layers of the student that call `add_loss` cannot train under a "
                "`tf.distribute.Strategy`: Keras keeps one list of losses for all "
                f"replicas. Received: {len(added)} added losses"
            )
        return others

    def _sum(self, losses):
        return sum((ops.sum(ops.cast(loss, "float32")) for loss in losses), 0.0)
