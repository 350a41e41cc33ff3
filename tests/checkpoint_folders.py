"""Folders with a tiny LLaVA as Hugging Face publishes it, to be damaged by tests."""

import json

from mobilevlm_golden import tensors
from test_mobilevlm_checkpoints import PORT, PORT_NAMES, renamed, write


def llava_folder(path, change=None, weights=None, **kwargs):
    """A folder that loads, after `change` was applied to the dict of its config."""
    config = json.loads(json.dumps({**PORT, "model_type": "llava"}))
    if change is not None:
        change(config)
    found = renamed(tensors("llava"), PORT_NAMES[0])
    return write(path, found | (weights or {}), config, **{"shards": 1, **kwargs})


def text(**values):
    """A change of the language model's settings."""
    return lambda config: config["text_config"].update(values)


def vision(**values):
    """A change of the vision tower's settings."""
    return lambda config: config["vision_config"].update(values)


def outer(**values):
    """A change of the settings that belong to both."""
    return lambda config: config.update(values)
