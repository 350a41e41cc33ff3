"""The file of a preset that says which chat template its model was tuned with."""

import dataclasses
import json

from keras_betakd.files import atomic_write
from keras_betakd.models.preset_files import read_object
from keras_betakd.preprocessing.chat_template import ChatTemplate
from keras_betakd.preprocessing.chat_templates import chat_template
from keras_betakd.preprocessing.prompt_templates import (
    remembered_template,
    template_label,
)

TEMPLATE_FILE = "prompt_template.json"
_KEY = "prompt_template"


def write_template(preprocessor, folder):
    """Writes the template that a preprocessor knows, if it knows one.

    Args:
        preprocessor: a keras-hub preprocessor, or `None`.
        folder: `pathlib.Path` of the preset.
    """
    template = remembered_template(preprocessor)
    if template is None:
        return
    if not isinstance(template, str):
        is_published = template_label(template) == template.name
        template = template.name if is_published else dataclasses.asdict(template)
    with atomic_write(folder / TEMPLATE_FILE) as draft:
        draft.write_text(json.dumps({_KEY: template}, indent=1), encoding="utf-8")


def read_template(folder):
    """The template that `write_template` wrote: a name or a `ChatTemplate`.

    Raises:
        ValueError: the file is damaged; the message names it.
    """
    path = folder / TEMPLATE_FILE
    found = read_object(path).get(_KEY)
    try:
        if isinstance(found, dict):
            return ChatTemplate(**found)
        return chat_template(found).name
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"'{path}' is damaged: it names no prompt template ({error}). Take the "
            "preset from a copy, or delete the file and give `prompt_template`."
        ) from error
