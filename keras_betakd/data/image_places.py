"""What a text says of where an image is: a path, a `file:` or a `data:` address."""

import base64
import binascii
import re
import reprlib
from urllib.parse import unquote

# Two letters at least: `C:/images` is a path of Windows.
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)


def local_place(text: str) -> str | bytes:
    """Returns the path that a text stands for, or the bytes of the file in it.

    Nothing is downloaded: a training that depends on a server ends when the server
    does, and sees other images when it changes them.

    Args:
        text: A path, `file:///...`, or `data:image/...;base64,...`.

    Returns:
        The path, or the decoded bytes of a `data:` address.

    Raises:
        ValueError: The address is of another scheme or host, or is not in base64.

    Example:

    >>> local_place("file:///images/a%20b.png"), local_place("a.png")
    ('/images/a b.png', 'a.png')
    """
    if text[:5].lower() == "data:":
        return _data(text)
    scheme = _SCHEME.match(text)
    if scheme is None:
        return text
    if scheme[1].lower() != "file":
        raise ValueError(
            "images are read from this machine, nothing is downloaded: save the image "
            f"first and give its path. Received: {reprlib.repr(text)}"
        )
    host, slash, path = text[scheme.end() :].partition("/")
    if host not in ("", "localhost") or not slash:
        raise ValueError(
            "a `file:` address must name a file of this machine, by `file:///` and its "
            f"whole path. Received: {reprlib.repr(text)}"
        )
    from urllib.request import url2pathname

    return url2pathname(slash + path)


def _data(text):
    head, _, body = text.partition(",")
    try:
        if not re.fullmatch(r"data:image/[^;,]+(;[^;,]+)*;base64", head, re.IGNORECASE):
            raise ValueError(f"it begins with {reprlib.repr(head)}")
        # The letters of base64 may be escaped in an address.
        data = base64.b64decode(unquote(body), validate=True)
    except (ValueError, binascii.Error) as error:
        raise ValueError(
            "a `data:` address of an image must be `data:image/png;base64,` (or of "
            f"another type) and the file in base64. Received: {reprlib.repr(text)} "
            f"({error})"
        ) from error
    if not data:
        raise ValueError(f"a `data:` address without data. Received: {text!r}")
    return data
