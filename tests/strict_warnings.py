"""Warnings as errors, for tests that expect none."""

import contextlib
import warnings


@contextlib.contextmanager
def no_user_warnings():
    """Raises each `UserWarning`, but TensorFlow's on what the suite runs eagerly."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message="Even though the `tf.config")
        yield
