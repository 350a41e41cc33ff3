"""What the person at the command line can put right."""

import contextlib


class UsageError(Exception):
    """An error whose message, without a traceback, says what to do."""


@contextlib.contextmanager
def usage_errors():
    """Takes the errors that reading files and presets is documented to raise as usage.

    Example:

    ```python
    with usage_errors():
        questions = load_gqa(...)
    ```
    """
    try:
        yield
    except (ImportError, OSError, ValueError) as error:
        raise UsageError(str(error)) from error
