"""What is monitored and shown of a training: directions of metrics, a first word."""

import sys
import warnings

import keras

from keras_betakd.backends import runs_eagerly
from keras_betakd.betas import FixedBeta


def direct_monitors(callbacks, directions, betas):
    """Sets the `mode` of callbacks that monitor a metric and leave it to Keras.

    Keras knows the direction of its own accuracies and losses only, and ends the run
    after the first epoch where it does not know one.

    Args:
        callbacks: list of callbacks. Those with `monitor` and `mode="auto"` (such as
            `EarlyStopping`, `ModelCheckpoint` and `ReduceLROnPlateau`) are changed.
        directions: dict of `"min"`, `"max"` or `None`, by the names of the metrics.
        betas: the beta layers.

    Raises:
        ValueError: neither direction is better, and the callback names none.
    """
    learned = any(not isinstance(beta, FixedBeta) for beta in betas)
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        # A `ModelCheckpoint` looks at no metric otherwise.
        if not isinstance(monitor, str) or not getattr(
            callback, "save_best_only", True
        ):
            continue
        name = monitor.removeprefix("val_")
        if name == "loss" and learned:
            _warn_of_loss(callback, monitor)
        if name in directions and getattr(callback, "mode", None) == "auto":
            callback.mode = directions[name] or _expect_mode(callback, monitor)


def _warn_of_loss(callback, monitor):
    instead = monitor.removesuffix("loss")
    warnings.warn(
        f"{type(callback).__name__} monitors '{monitor}', which falls and rises with "
        "the betas even where the student stands still. Monitor "
        f"'{instead}objective', the loss at the best betas, "
        f"'{instead}task_loss' or '{instead}accuracy'.",
        UserWarning,
        stacklevel=4,
    )


def _expect_mode(callback, monitor):
    raise ValueError(
        f"{type(callback).__name__} monitors '{monitor}', of which neither small nor "
        "large values are better. Pass mode='min' or mode='max', or monitor "
        "'val_objective', 'val_task_loss' or 'val_accuracy'."
    )


def announce_compiling(model, verbose, function):
    """Writes a line in front of Keras' progress bar, which is silent so long.

    Args:
        model: the distiller.
        verbose: as for `fit`.
        function: the compiled step; `None` if there is none yet.
    """
    compiles = not (runs_eagerly() or model.run_eagerly or function)
    if compiles and verbose and keras.config.is_interactive_logging_enabled():
        name = keras.backend.backend()
        sys.stdout.write(
            f"Compiling the first step on {name}; this can take a minute.\n"
        )
        sys.stdout.flush()
