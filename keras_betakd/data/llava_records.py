"""The record of a conversation about images, with checked image marks."""

import dataclasses
import reprlib
from collections.abc import Sequence

import numpy as np

from keras_betakd.data.batches import naming, record_error
from keras_betakd.data.images import IMAGE_MARK, load_image, neutralize_image_marks


@dataclasses.dataclass(frozen=True)
class LlavaRecord:
    """One conversation, of one turn or several, about any number of images.

    The prompts hold one `IMAGE_MARK` for each image, in the order of the images. To a
    record of one image without mark, the mark and a newline are added in front of the
    first prompt, since LLaVA's trainers need a mark. All other image marks and chat
    marks are neutralized (see `neutralize_image_marks`) in prompts and responses; in a
    record without images, `IMAGE_MARK` is, too. The texts are not changed otherwise.

    Args:
        id: The record's id.
        prompts: The texts of the human, one for each turn.
        responses: The answers that the model should learn, one for each prompt.
        images: Sources that `load_image` reads, usually paths. They are read only when
            a batch needs them.
        system: The text that comes before all turns; `None` for none. Each family's
            format writes it in its own way.

    Raises:
        ValueError: There are not equally many prompts and responses, one of them or the
            system text is empty, or there are not equally many marks and images. The
            message names the id.

    Example:

    >>> record = LlavaRecord("7", ["What is it?"], ["A cat."], ["cat.png"])
    >>> record.prompts
    ('<image>\\nWhat is it?',)
    """

    id: str
    prompts: Sequence[str]
    responses: Sequence[str]
    images: Sequence = ()
    system: str | None = None

    def __post_init__(self):
        for name in ("prompts", "responses", "images"):
            value = getattr(self, name)
            if not isinstance(value, (list, tuple)):
                message = f"`{name}` must be a list or a tuple."
                raise record_error(self.id, message, reprlib.repr(value))
            object.__setattr__(self, name, tuple(value))
        _check_turns(self)
        responses = tuple(map(neutralize_image_marks, self.responses))
        object.__setattr__(self, "responses", responses)
        object.__setattr__(self, "prompts", tuple(_marked_prompts(self)))
        for name in ("prompts", "responses"):
            _check_not_empty(self, name)
        if self.system is not None:
            object.__setattr__(self, "system", _system(self))


def _system(record):
    text = record.system
    if not isinstance(text, str) or not text.strip():
        message = "`system` must be a text that is not empty; leave it out for none."
        raise record_error(record.id, message, reprlib.repr(text))
    return neutralize_image_marks(text)


def _check_turns(record):
    prompts, responses = record.prompts, record.responses
    if not prompts or len(prompts) != len(responses):
        raise record_error(
            record.id,
            "there must be at least one prompt, and a response to each.",
            f"{len(prompts)} prompts, {len(responses)} responses",
        )
    for text in prompts + responses:
        if not isinstance(text, str):
            message = "prompts and responses must be strings."
            raise record_error(record.id, message, reprlib.repr(text))


def _check_not_empty(record, name):
    for text in getattr(record, name):
        if not text.strip():
            message = f"`{name}` must not be empty; give a text or drop the turn."
            raise record_error(record.id, message, repr(text))


def _marked_prompts(record):
    if not record.images:
        return map(neutralize_image_marks, record.prompts)
    prompts = [_neutralize_between_marks(prompt) for prompt in record.prompts]
    marks = sum(prompt.count(IMAGE_MARK) for prompt in prompts)
    if marks == 0 and len(record.images) == 1:
        prompts[0] = f"{IMAGE_MARK}\n{prompts[0]}"
    elif marks != len(record.images):
        raise record_error(
            record.id,
            f"the human turns must hold one {IMAGE_MARK!r} for each image; add or "
            "take out marks or images.",
            f"{marks} marks, {len(record.images)} images",
        )
    return prompts


def _neutralize_between_marks(text):
    return IMAGE_MARK.join(map(neutralize_image_marks, text.split(IMAGE_MARK)))


def read_images(record: LlavaRecord) -> list[np.ndarray]:
    """Reads the images of a record by `load_image`.

    Raises:
        FileNotFoundError, ValueError: As for `load_image`, with the record's id.

    Example:

    >>> read_images(LlavaRecord("7", ["Hi"], ["Hello!"]))
    []
    """
    with naming(record.id):
        return [load_image(source) for source in record.images]
