"""Keeps a folder to one process, and names that are read from files inside a folder."""

import contextlib
import json
import os
import pathlib
import secrets
import socket
import types
import warnings

fcntl: types.ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK_NAME = ".in_use"
_ADVICE = "Wait until it ends, end it, or give another folder."

# (real path, process) -> (file descriptor, token of the owner). The lock belongs to the
# process, so of two owners within it the tokens say which one is newer.
_held: dict[tuple[str, int], tuple[int, str]] = {}


class FolderInUseError(OSError):
    """A folder is in use by another process, or by a newer owner of this one."""


def inside(folder: str | os.PathLike, name: str) -> pathlib.Path:
    """Returns the path of a file by its name in a folder, never one outside it.

    Every name that is read from a file (an index, a question, a record) goes through
    this function. A link in the folder may lead to another place in it; in a snapshot
    of the Hugging Face cache also to the `blobs` of the same repository, where the
    cache keeps its files.

    Args:
        folder: The folder, which may itself be a link.
        name: A relative path with `/` between its parts.

    Returns:
        `folder / name`, which need not exist.

    Raises:
        ValueError: `name` is no string, is empty or absolute, or leads outside the
            folder, by `..` or by a link.

    Example:

    >>> inside("images", "train/1.png").as_posix()
    'images/train/1.png'
    """
    folder = pathlib.Path(folder)
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise ValueError(f"A file's name must be a string of text. Received: {name!r}")
    pure = pathlib.PurePath(name)
    if pure.anchor or ".." in pure.parts or not pure.parts:
        raise ValueError(
            f"A file's name must lead to a place inside its folder '{folder}'. "
            f"Received: {name!r}"
        )
    path = folder / name
    if not _passes_a_link(folder, pure.parts):
        return path
    real = pathlib.Path(os.path.realpath(path))
    if not any(real.is_relative_to(root) for root in _roots(folder)):
        raise ValueError(
            f"{name!r} is a link that leads out of the folder '{folder}', to '{real}'. "
            "Give the folder that the file is really in, or copy the file."
        )
    return path


def _passes_a_link(folder, parts):
    """Whether one of the parts below the folder is a link.

    Without one the path leads inside. This takes a tenth of the time of `realpath`,
    and training data have hundreds of thousands of images.
    """
    place = os.fspath(folder)
    for part in parts:
        place = os.path.join(place, part)
        if os.path.islink(place):
            return True
    return False


def _roots(folder):
    """The real folders that files of `folder` may be in."""
    real = pathlib.Path(os.path.realpath(folder))
    roots = [real]
    for parent in (real, *real.parents):
        if parent.name == "snapshots" and (parent.parent / "blobs").is_dir():
            roots.append(parent.parent / "blobs")
    return roots


class FolderOwner:
    """The one process that may write in a folder, until it releases it or ends.

    The system releases the lock of a process that was killed. Within one process a
    newer owner takes the folder over, as when a cell of a notebook runs again; the
    older one then raises at its next write instead of writing beside it.

    Args:
        folder: The folder; created if it does not exist.
        user: What uses the folder, for the error message of another process.

    Raises:
        FolderInUseError: Another process owns the folder. The message names it.

    Example:

    ```python
    with FolderOwner("output/backup", "TrainingBackup") as owner:
        owner.expect()
        (owner.folder / "state").write_text("...")
    ```
    """

    def __init__(self, folder: str | os.PathLike, user: str):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._key = os.path.realpath(self.folder)
        self._token = secrets.token_hex(8)
        descriptor, _ = _held.get(self._entry, (None, None))
        if descriptor is None or not _is_file_at(descriptor, self.folder / LOCK_NAME):
            descriptor = _locked(self.folder, user)
        _held[self._entry] = descriptor, self._token

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.release()

    def expect(self) -> None:
        """Raises a `FolderInUseError` if a newer owner has taken the folder over."""
        if not self._owns():
            raise FolderInUseError(
                f"The folder '{self.folder}' was taken over by a newer user of it in "
                f"this process, or was released. {_ADVICE}"
            )

    def release(self) -> None:
        """Ends the ownership; nothing happens if it has ended already."""
        if self._owns():
            descriptor, _ = _held.pop(self._entry)
            if descriptor is not None:
                # Removed while it is locked: whoever waits for it sees that it is gone.
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(self._key, LOCK_NAME))
                os.close(descriptor)

    @property
    def _entry(self):
        # After a fork the parent's entry is here too, but not its lock.
        return self._key, os.getpid()

    def _owns(self):
        return self._entry in _held and _held[self._entry][1] == self._token


def _locked(folder, user):
    """The descriptor of the folder's lock file, which this process has locked."""
    if fcntl is None:
        warnings.warn(
            f"This system has no file locks, so nothing keeps a second process from "
            f"writing in '{folder}'.",
            stacklevel=4,
        )
        return None
    path = folder / LOCK_NAME
    while True:
        # O_NOFOLLOW: a link of that name must not have another file written to.
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(path, flags, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _owner_of(descriptor)
            os.close(descriptor)
            raise FolderInUseError(
                f"The folder '{folder}' is in use by {owner}. {_ADVICE}"
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise FolderInUseError(
                error.errno,
                f"The folder '{folder}' cannot be locked ({error}), so a second "
                "process could write in it. Give a folder on another file system.",
            ) from error
        if _is_file_at(descriptor, path):
            break
        os.close(descriptor)  # its owner removed it between the two calls
    entry = {"process": os.getpid(), "host": socket.gethostname(), "user": user}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(entry).encode(), 0)
    return descriptor


def _is_file_at(descriptor, path):
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _owner_of(descriptor):
    try:
        entry = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {entry['process']} on {entry['host']} ({entry['user']})"
    except (OSError, ValueError, KeyError, TypeError):  # it is being written
        return "another process"
