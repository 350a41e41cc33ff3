"""Reads rows from tar files in the form of WebDataset, one after the other.

    000000.jpg  000000.txt  000000.json  000001.jpg  000001.txt  000001.json  ...

The members whose names are equal up to the first dot make one row. Nothing is ever
extracted to a disk.
"""

import glob
import json
import os
import posixpath
import tarfile
from collections.abc import Iterator
from typing import Any

from keras_betakd.data.image_keys import IMAGE_ENDINGS, UNREAD_ENDINGS
from keras_betakd.data.splits import expect_one_split
from keras_betakd.files import unique_keys

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz")

MEDIA_ENDINGS = {
    **dict.fromkeys(("mp4", "webm", "avi", "mov", "mkv"), "video"),
    **dict.fromkeys(("wav", "mp3", "flac", "ogg", "m4a"), "audio"),
}
"""Endings of what loaders refuse, and the key that they refuse it by."""

MAX_MEMBER_BYTES = 2**28
"""The largest member that is read, 256 MiB: a compressed file may claim any size."""


class TarRows:
    """The rows of tar files in the form of WebDataset, read anew by each iteration.

    A row has the keys of the member `.json`; `"image"` (`.jpg`), or `"images"` if there
    are several (`.0.jpg`, `.1.jpg`); the text of `.txt`, `.text` or `.caption` under
    its ending, without the end of its last line; other images under theirs
    (`"seg.png"`), of which a single one is `"image"`, too; and `"__key__"`, the
    members' common name.

    Args:
        paths: The path of a tar file, with `*` of several, of a folder of them, or a
            list of paths. Several are read in the order of their names.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: While rows are read: there are none, or a row is of images alone.
            Its text may stand elsewhere in the file, and would be trained blind.

    Example:

    ```python
    first = next(iter(TarRows("cc3m/*.tar")))
    ```
    """

    def __init__(self, paths: Any):
        listed = paths if isinstance(paths, (list, tuple)) else [paths]
        self.paths = [path for entry in listed for path in _files_of(entry)]

    def __iter__(self) -> Iterator[dict | ValueError]:
        is_empty = True
        for path in self.paths:
            for row in _rows_of_file(path):
                is_empty = False
                yield row
        if is_empty:
            raise ValueError(
                f"There are no records in the tar files {self.paths[:3]}: none of "
                f"them has a member. Received: {len(self.paths)} files"
            )


def _files_of(entry):
    entry = os.fspath(entry)
    if os.path.isfile(entry):
        return [entry]
    pattern = os.path.join(glob.escape(entry), "*") if os.path.isdir(entry) else entry
    found = [p for p in sorted(glob.glob(pattern)) if p.lower().endswith(TAR_ENDINGS)]
    if not found:
        raise FileNotFoundError(f"There is no tar file at this path: {entry!r}")
    expect_one_split(entry, found)
    return found


def _rows_of_file(path):
    """The rows of one file; what cannot be read is an error in the place of its row."""
    try:
        # As a stream: what a tar file says of places in itself is not followed.
        with tarfile.open(path, "r|*") as archive:
            key, members = None, []
            for member in archive:
                folder, name = posixpath.split(member.name)
                if member.isdir() or name.startswith("._") or name == ".DS_Store":
                    continue  # The latter two are notes that macOS makes.
                stem, _, ending = name.partition(".")
                own_key = posixpath.join(folder, stem)
                if own_key != key and members:
                    yield _row(path, key, members)
                    members = []
                key = own_key
                members.append((ending.lower(), _content(archive, member)))
            if members:
                yield _row(path, key, members)
    except (tarfile.TarError, EOFError, OSError) as error:
        yield ValueError(
            f"{path!r} cannot be read to its end; it is no tar file, or was cut: make "
            f"or copy it again, or leave it out. ({type(error).__name__}: {error})"
        )


def _content(archive, member):
    """The bytes of a member, or what is wrong with it as a `ValueError`."""
    if not member.isfile():
        return ValueError(f"{member.name!r} must be a regular file, no link or device")
    if member.size > MAX_MEMBER_BYTES:
        return ValueError(
            f"{member.name!r} has {member.size} bytes, more than the "
            f"{MAX_MEMBER_BYTES} that are read"
        )
    return archive.extractfile(member).read()


def _row(path, key, members):
    kinds = [ending.split(".")[-1] for ending, _ in members]
    is_whole = not any(isinstance(content, ValueError) for _, content in members)
    if is_whole and set(kinds) <= {*IMAGE_ENDINGS, *UNREAD_ENDINGS}:
        raise ValueError(
            f"Record {key!r} of {path!r} has no text beside its image. The files of "
            "one record must follow one another in a tar file, with one name up to the "
            "first dot: sort them by name (`tar --sort=name`). An image that belongs "
            f"to no text must be taken out. Received: {sorted(kinds)}"
        )
    try:
        return _joined(key, members)
    except (ValueError, RecursionError) as error:
        return ValueError(f"Record {key!r} of {path!r}: {error}")


def _joined(key, members):
    row, images, texts, others = {}, {}, {}, {}
    for ending, content in members:
        if isinstance(content, ValueError):
            raise content
        if ending in {**texts, **images, **others} or (ending == "json" and row):
            raise ValueError(f"there are two members with the ending {ending!r}")
        number, _, kind = ending.rpartition(".")
        if kind in IMAGE_ENDINGS and (number.isdigit() or not number):
            images[ending] = content
        elif kind in IMAGE_ENDINGS or kind in UNREAD_ENDINGS:
            others[ending] = content  # a mask, say: an image if a user names it
        elif kind in MEDIA_ENDINGS:
            others[MEDIA_ENDINGS[kind]] = f"{key}.{ending}"
        elif ending == "json":
            row = json.loads(content, object_pairs_hook=unique_keys)
            if not isinstance(row, dict):
                raise ValueError("its .json must hold an object")
        elif ending in ("txt", "caption", "text"):
            texts[ending] = content.decode("utf-8-sig").rstrip("\r\n")
    row = _with_images(row, images, others)
    return {**row, **others, **texts, "__key__": key}


def _with_images(row, images, others):
    """The row with its images, as far as the names of the members say which they are.

    The image beside the text is the record's: what `.json` has under these keys says
    where it once came from.
    """
    readable = {k: v for k, v in others.items() if k.split(".")[-1] in IMAGE_ENDINGS}
    unread = [k for k in others if k.split(".")[-1] in UNREAD_ENDINGS]
    if unread and not images and not readable:
        raise ValueError(
            f"the image {unread[0]!r} is of a kind that cannot be read: make a PNG or "
            "JPEG file of it, or take it out where it is no image"
        )
    if len(images) > 1 and not all("." in ending for ending in images):
        raise ValueError(
            f"there are two images, {sorted(images)}: which of them is meant? Number "
            "the images of one record (.0.jpg, .1.jpg), or take one out"
        )
    found = list((images or (readable if len(readable) == 1 else {})).values())
    if not found:
        return row
    row = {k: v for k, v in row.items() if k not in ("image", "images")}
    return row | ({"image": found[0]} if len(found) == 1 else {"images": found})
