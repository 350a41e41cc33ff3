"""Reduces the loss of data-parallel replicas to that of the global batch.

The row weights of all replicas add up to one (`keras_betakd.objective.normalised`), so
the sum of the replicas' totals is the loss of the global batch, and the sum of their
gradients its gradient.
"""

from keras import ops

from keras_betakd.distribution.replicas import (
    gradients_are_summed,
    over_replicas,
    replica_count,
)


def batch_loss(total, outputs, betas, losses):
    """The loss of the global batch.

    Args:
        total: cross-entropy and energies of this replica's rows.
        outputs: the `DistillationOutputs`.
        betas: dict of all beta layers.
        losses: function that returns the model's losses: those that layers added,
            the betas' -(d / 2) log beta among them, and those of regularisers.

    Returns:
        `(loss, whole)`. The engine differentiates `loss`, whose gradient, once reduced
        over the replicas, is that of the global batch; `whole` is the value of the
        global batch's loss.
    """
    replicas = replica_count()
    if replicas == 1:
        loss = total + _sum(losses())
        return loss, loss
    for name, beta in betas.items():
        total = total + beta.penalty(outputs.log_beta[name], outputs.weights[name])
    rest = _sum(losses_of_no_beta(losses, betas))
    whole = over_replicas(total)
    if gradients_are_summed():
        return total + rest / replicas, whole + rest
    # The value is that of the whole; the gradient's mean is the sum of the parts'.
    part = replicas * total
    loss = part + ops.stop_gradient(whole - part) + rest
    return loss, whole + rest


def losses_of_no_beta(losses, betas):
    """The losses of regularisers; those of the betas are in the replicas' totals.

    Args:
        losses, betas: as for `batch_loss`.

    Raises:
        ValueError: a layer of the student calls `add_loss` under a
            `tf.distribute.Strategy`, where Keras keeps one list for all replicas.
    """
    ours = [loss for beta in betas.values() for loss in beta.losses]
    others = [x for x in losses() if not any(x is loss for loss in ours)]
    # A regulariser computes its loss anew each time; `add_loss` keeps one object.
    added = [x for x in others if any(x is loss for loss in losses())]
    if added and gradients_are_summed():
        raise ValueError(
            "Layers of the student that call `add_loss` cannot train under a "
            "`tf.distribute.Strategy`: Keras keeps one list of losses for all "
            f"replicas. Received: {len(added)} added losses"
        )
    return others


def _sum(losses):
    return sum((ops.sum(ops.cast(loss, "float32")) for loss in losses), 0.0)
