"""Files that are there as a whole or not at all, whatever happens while writing."""

import contextlib
import os
import pathlib


@contextlib.contextmanager
def written_whole(path, advice="Make room, or the folder writable.", size=0):
    """A name to write to, whose file takes the place of `path` once it is complete.

    A kill, a crash or a full disk leaves `path` as it was.

    Args:
        path: file to write.
        advice: what to do where it cannot be written, for the message.
        size: bytes that must be free before anything is written. HDF5 does not survive
            a disk that runs full: it ends the process.

    Raises:
        OSError: it cannot be written; the message names it.
    """
    path = pathlib.Path(path)
    draft = path.with_name(f".part.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if size and hasattr(os, "posix_fallocate"):
            with open(draft, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)
        yield draft
        with open(draft, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(draft, path)
    # h5py has a RuntimeError where a file cannot be closed.
    except (OSError, RuntimeError) as error:
        _remove(draft)
        needed = f" ({size:,} bytes)" if size else ""
        raise OSError(
            getattr(error, "errno", None) or 0,
            f"'{path}'{needed} cannot be written: {error}. What stood there before is "
            f"untouched. {advice}",
        ) from error
    except BaseException:
        _remove(draft)
        raise


def _remove(path):
    with contextlib.suppress(OSError):
        path.unlink()
