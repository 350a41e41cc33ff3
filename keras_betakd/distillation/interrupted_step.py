"""What an error that ends `fit`, `evaluate` or `predict` leaves: values, a message."""

import contextlib


@contextlib.contextmanager
def values_kept(model):
    """A context after which the model has its values, also where an error ends it.

    On JAX, Keras takes the values out of the variables for the steps and returns them
    at the end of an epoch. An error of the data before the first step (a record that is
    refused, Ctrl-C), or anywhere in `evaluate` and `predict`, would leave variables
    without values, and so lose what was trained.

    Args:
        model: a `keras.Model`.
    """
    sync = getattr(model, "jax_state_sync", None)
    if sync is None:  # PyTorch and TensorFlow change variables where they are
        yield
        return
    # References alone: a step frees the arrays that it replaces all the same.
    held = [(variable, variable.value) for variable in _variables(model)]
    try:
        yield
    except BaseException:
        sync()
        for variable, value in held:
            if _is_taken(variable):
                variable.assign(value)
        raise


@contextlib.contextmanager
def unwrapped_errors(*datasets):
    """A context that an error of the data leaves as it was raised.

    TensorFlow reads the data inside an operation of its own, and hands its errors on as
    an `InvalidArgumentError` that quotes the traceback: the reason stands at its end,
    and nobody can catch it by its class.

    Args:
        *datasets: each a `FormattedDataset`, which remembers its error, or other data.
    """
    try:
        yield
    except Exception as error:
        for dataset in datasets:
            cause = getattr(dataset, "error", None)
            if cause not in (None, error) and str(cause) in str(error):
                raise cause from None
        raise


def _variables(model):
    optimizer = getattr(model, "optimizer", None)
    ours = [*model.variables, *model.metrics_variables]
    return [*ours, *(optimizer.variables if optimizer else ())]


def _is_taken(variable):
    try:
        return variable.value is None
    except TypeError:  # Keras falls back to the initializer, which it has dropped
        return True
