"""Reads the `metrics` and `weighted_metrics` of the distiller's `compile`."""

import inspect

import keras
from keras import tree


def resolved_metrics(metrics, weighted_metrics, reported):
    """The metrics of both arguments, each of them weighted.

    A batch has slots without an answer token, whose labels and logits mean nothing, so
    a metric over all slots would mean nothing either.

    Args:
        metrics, weighted_metrics: as for `keras.Model.compile`: a metric, or lists or
            dicts of metrics, functions and names; `None` for none. `weighted_metrics`
            may also be `"auto"`, for the distiller's own accuracy.
        reported: the names of the distiller's own metrics.

    Returns:
        `(others, reports_accuracy)`: the list of what Keras computes from logits, and
        whether the distiller reports its own accuracy, which the name `"accuracy"`
        stands for too: it needs no logits.

    Raises:
        ValueError: a metric that expects probabilities or takes no labels, an unknown
            name, or the name of one of the distiller's own.
    """
    automatic = isinstance(weighted_metrics, str) and weighted_metrics == "auto"
    given = metrics, None if automatic else weighted_metrics
    found = [x for x in tree.flatten(given) if x is not None]
    others = [x for x in found if not isinstance(x, str) or x != "accuracy"]
    names = [_checked_name(metric) for metric in others]
    reports_accuracy = len(others) < len(found) or (
        automatic and "accuracy" not in names
    )
    taken = set(reported) if reports_accuracy else {*reported} - {"accuracy"}
    clashes = sorted(n for n in names if n in taken or n.startswith("val_"))
    if clashes:
        raise ValueError(
            f"Names of metrics that are taken: {clashes}. The distiller reports "
            f"{', '.join(sorted(taken))}; names with val_ in front are those of the "
            "validation. Give the metric another one, by `name=`. Received: metrics "
            f"named {names}"
        )
    return others, reports_accuracy


def _checked_name(metric):
    """The name that Keras will report a metric by."""
    if metric == "acc":
        return metric
    known = keras.metrics.get(metric)
    name = getattr(known, "name", None) or getattr(known, "__name__", str(known))
    if not _compares(known):
        raise ValueError(
            f"The metric '{name}' does not compare labels with logits: it is called as "
            f"{inspect.signature(getattr(known, 'update_state', known))}, and a metric "
            "as `update_state(y_true, y_pred, sample_weight)`. Make it of a function: "
            "`keras.metrics.MeanMetricWrapper(function)`."
        )
    if _expects_probabilities(known):
        raise ValueError(
            f"The metric '{name}' expects probabilities, but it is given the student's "
            "logits. Make it with `from_logits=True`, for example "
            "`keras.metrics.SparseCategoricalCrossentropy(from_logits=True)`."
        )
    return metric if isinstance(metric, str) else name


def _compares(metric):
    """Whether a metric, or a function, can be called with labels and logits."""
    is_metric = isinstance(metric, keras.metrics.Metric)
    weights = {"sample_weight": None} if is_metric else {}
    signature = inspect.signature(metric.update_state if is_metric else metric)
    try:
        signature.bind(None, None, **weights)
    except TypeError:
        return False
    return True


def _expects_probabilities(metric):
    if not isinstance(metric, keras.metrics.Metric):
        parameter = inspect.signature(metric).parameters.get("from_logits")
        return parameter is not None and parameter.default is False
    try:
        return metric.get_config().get("from_logits") is False
    except NotImplementedError:  # a metric of the user's, which cannot be saved
        return False


def expect_no_loss_weights(loss_weights):
    """Raises a `ValueError` for `loss_weights`, which would have no effect."""
    if loss_weights is not None:
        raise ValueError(
            "`loss_weights` is not supported: the betas weight the terms of the loss. "
            "Give an energy a constant weight by `FixedBeta`, the cross-entropy by "
            f"`task_beta=FixedBeta(...)`. Received: loss_weights={loss_weights}"
        )
