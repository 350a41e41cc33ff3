"""Ends the evaluation command at Ctrl-C, whatever it is doing.

Libraries swallow a `KeyboardInterrupt` that reaches them while they are imported or
load a model, or turn it into another error: the run then went on, or ended as if an
argument were wrong. So a process of the command ends in the signal's handler itself,
from the import of this module on, which the package imports first. Nothing is lost: all
answers that were told of are on disk, and the next run takes half a line or a temporary
file away, as after a kill.
"""

import contextlib
import os
import pathlib
import signal
import sys
import threading

COMMAND = "keras-betakd-evaluate"
MODULE = "keras_betakd.evaluate"
EXIT_CODE = 130

_noted: list[int] = []
_message = ["\nStopped.\n"]


def end_command_at_ctrl_c() -> None:
    """From now on, Ctrl-C ends the process at once if it is one of the command."""
    handler = signal.getsignal(signal.SIGINT)
    # Not where it is ignored, as in a shell's background jobs.
    if _is_command() and handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def _is_command():
    if threading.current_thread() is not threading.main_thread():
        return False
    program = sys.argv[0] if getattr(sys, "argv", None) else ""
    # While Python imports the package of a module given with -m, that is the program.
    is_module = program == "-m" and MODULE in sys.orig_argv
    return is_module or pathlib.Path(program).stem == COMMAND


def _end(signum, frame):
    # Whatever stands in the way, a second Ctrl-C included.
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    with contextlib.suppress(Exception):
        os.write(sys.__stderr__.fileno(), _message[0].encode())
    os._exit(EXIT_CODE)


end_command_at_ctrl_c()


@contextlib.contextmanager
def noted(message: str):
    """Within, Ctrl-C is noted, so that `raise_if_noted` finds it if it is swallowed.

    Args:
        message: What the process of the command writes when Ctrl-C ends it.

    Yields:
        A list that is empty until there is a Ctrl-C.

    Example:

    ```python
    with noted("Stopped.") as interrupts:
        model = load_model(preset)
        raise_if_noted()
    ```
    """
    _noted.clear()
    _message[0] = message
    try:
        replaced = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if replaced:
            signal.signal(signal.SIGINT, _note)
    except ValueError:  # not the main thread, which receives no signals
        replaced = False
    try:
        yield _noted
    finally:
        if replaced:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _note(signum, frame):
    _noted.append(signum)
    raise KeyboardInterrupt


def raise_if_noted() -> None:
    """Raises a `KeyboardInterrupt` if there was one within `noted`."""
    if _noted:
        raise KeyboardInterrupt
