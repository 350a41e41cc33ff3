"""The marks by which other tools' data show where an image is, and what they become.

A record has marks of one kind. Where it has `IMAGE_MARK`, all others are plain text.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from keras_betakd.data.batches import record_error
from keras_betakd.data.images import IMAGE_MARK

MARKS = {
    "InternLM-XComposer's <ImageHere>": r"<ImageHere>",
    "Llama 3.2's and mPLUG-Owl's <|image|>": r"<\|image\|>",
    "DeepSeek-VL's <image_placeholder>": r"<image_placeholder>",
    "Gemma 3's <start_of_image>": r"<start_of_image>",
    "Qwen2-VL's <|image_pad|>": (
        r"<\|vision_start\|>(?:<\|image_pad\|>)+<\|vision_end\|>|<\|image_pad\|>"
    ),
    "Pixtral's [IMG]": r"\[IMG\]",
    "InternVL's <IMG_CONTEXT>": r"<img>(?:<IMG_CONTEXT>)+</img>|<IMG_CONTEXT>",
    "marks <IMAGE>": r"<(?:IMAGE|Image)>",
}
"""Marks without a number, each of one image, in the order of the images."""

LONE = r"<(?:img|IMG)>"
"""A mark where there are images and no other marks; else it may be a page's."""

NUMBERED = r"<\|?image[_ ]?(\d+)\|?>"
"""`<image_1>`, `<image 1>`, `<|image_1|>`, MiniCPM-V's `<image_00>`: of that image."""

INLINE = r"<img>([^<>]+)</img>"
"""Qwen-VL's `<img>path</img>`: the image itself."""

_KINDS = {
    **MARKS,
    "numbered marks such as <image_1>": NUMBERED,
    "Qwen-VL's <img>path</img>": INLINE,
}

_ANY = re.compile("|".join(_KINDS.values()))


def has_marks(prompts: Sequence[str]) -> bool:
    """Whether there is a mark of an image of any kind in the prompts.

    Example:

    >>> has_marks(["<ImageHere> What?"]), has_marks(["x < y"])
    (True, False)
    """
    return any(IMAGE_MARK in text or _kinds([text]) for text in prompts)


def _kinds(prompts):
    # Most texts have none: one search instead of one for each kind.
    prompts = [t for t in prompts if ("<" in t or "[" in t) and _ANY.search(t)]
    if not prompts:
        return []
    return [
        name
        for name, pattern in _KINDS.items()
        if any(re.search(pattern, text) for text in prompts)
    ]


def translated(
    record_id: str, prompts: Sequence[str], images: Sequence | Mapping
) -> tuple[list[str], list]:
    """Returns the prompts with `IMAGE_MARK`s, and the images in the order of the marks.

    Args:
        record_id: The record's id, for errors.
        prompts: The texts of the user.
        images: The images in order, or by their marks, as MiniCPM-V has them.

    Raises:
        ValueError: There are marks of two kinds, images in the text and beside it, or
            numbers that are not those of the images.

    Example:

    >>> translated("7", ["<image_2> or <image_1>?"], ["a.png", "b.png"])
    (['<image> or <image>?'], ['b.png', 'a.png'])
    """
    if isinstance(images, Mapping):
        return _by_name(record_id, prompts, images)
    is_marked = any(IMAGE_MARK in text for text in prompts)
    kinds = [] if is_marked else _kinds(prompts)
    if not kinds and images and not is_marked:
        return [re.sub(LONE, IMAGE_MARK, text) for text in prompts], list(images)
    if not kinds:
        return list(prompts), list(images)
    if len(kinds) > 1:
        message = "marks of one kind must show where the images are."
        raise record_error(record_id, message, ", ".join(kinds))
    pattern = _KINDS[kinds[0]]
    if pattern == INLINE:
        if images:
            message = "images must stand in the text or beside it, not both."
            received = f"{kinds[0]}, and {len(images)} images beside it"
            raise record_error(record_id, message, received)
        images = [m.strip() for text in prompts for m in re.findall(pattern, text)]
    elif not images:
        return list(prompts), []
    elif pattern == NUMBERED:
        images = _by_number(record_id, prompts, images)
    return [re.sub(pattern, IMAGE_MARK, text) for text in prompts], list(images)


def _by_number(record_id, prompts, images):
    numbers = [int(n) for text in prompts for n in re.findall(NUMBERED, text)]
    first = 0 if 0 in numbers else 1
    if sorted(numbers) != list(range(first, first + len(images))):
        raise record_error(
            record_id,
            f"each of its {len(images)} images must have one mark with its number, "
            "from 0 or 1.",
            f"the numbers {numbers}",
        )
    return [images[number - first] for number in numbers]


def is_by_name(images: Any) -> bool:
    """Whether images are given by their marks: `{"<image_00>": path}`.

    Example:

    >>> is_by_name({"<image_00>": "a.png"}), is_by_name({"path": "a.png"})
    (True, False)
    """
    return (
        isinstance(images, Mapping)
        and bool(images)
        and all(isinstance(k, str) and re.fullmatch(NUMBERED, k) for k in images)
    )


def _by_name(record_id: str, prompts: Sequence[str], images: Mapping[str, Any]):
    found = [m[0] for text in prompts for m in re.finditer(NUMBERED, text)]
    if sorted(found) != sorted(images):
        raise record_error(
            record_id,
            "each image must have one mark in the text, the one that it is given by.",
            f"images of {sorted(images)}, marks {found}",
        )
    prompts = [re.sub(NUMBERED, IMAGE_MARK, text) for text in prompts]
    return prompts, [images[mark] for mark in found]
