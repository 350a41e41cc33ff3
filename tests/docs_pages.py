"""The code blocks of README and docs/, and a folder in which they can run.

The blocks of a page run in order, as one program. Names of large presets stand for tiny
ones of the same family; the folder has the files that the pages name. A line
`<!-- in its own process: KERAS_BACKEND=jax ... -->` in front of a block runs it alone,
in a process with these variables.
"""

import json
import os
import pathlib
import re
import sys

import numpy as np
from PIL import Image
from tiny_models import random_image, tiny_gemma3

from keras_betakd.models import save_preset
from keras_betakd.preprocessing.prompt_templates import remember_template

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples"))

import mobilevlm_data  # noqa: E402
import qwen_vl_data  # noqa: E402

PAGES = ["README.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
# What the pages call large presets, and the folder of a tiny one in its place.
PRESETS = {
    "gemma3_instruct_12b": "large",
    "gemma3_instruct_4b": "small",
    "Qwen2.5-VL-7B-Instruct": "qwen/teacher",
    "Qwen2.5-VL-3B-Instruct": "qwen/student",
    "MobileVLM_V2-7B": "mobilevlm/teacher",
    "MobileVLM_V2-1.7B": "mobilevlm/teacher",
}
CLASSES = "151936"  # that Qwen2.5-VL's models have in common
MODELS = ("teacher", "student")
COLORS = ["red", "blue", "green", "teal"]
_BLOCK = re.compile(
    r"(?:<!-- in its own process: (.*?) -->\n)?^```(\w*).*?\n(.*?)^```", re.S | re.M
)


def blocks_of(page, language="python"):
    """Pairs of the variables of a block's own process (or `None`) and its code."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = [match.groups() for match in _BLOCK.finditer(text)]
    return [(process, code) for process, name, code in found if name == language]


def runnable(code, folder):
    """A block with the tiny presets of a folder in the place of large ones."""
    for name, tiny in PRESETS.items():
        code = code.replace(f'"{name}"', f'"{tiny}"')
    configs = [pathlib.Path(folder, f"qwen/{of}/config.json") for of in MODELS]
    rows = [json.loads(config.read_text())["vocab_size"] for config in configs]
    return code.replace(CLASSES, str(min(rows)))


def make_workspace(folder):
    """Writes presets, images and files of questions as the pages name them."""
    for name, width in {"large": 16, "small": 8}.items():
        model = tiny_gemma3(width=width, sequence_length=160, max_images=2)
        remember_template(model.preprocessor, "gemma3")
        save_preset(model, os.path.join(folder, name))
    qwen_vl_data.write_checkpoints(pathlib.Path(folder, "qwen"))
    mobilevlm_data.write_checkpoints(pathlib.Path(folder, "mobilevlm"))
    images = pathlib.Path(folder, "images")
    images.mkdir()
    for i in range(8):
        Image.fromarray(random_image(i)).save(images / f"{i}.png")
    _write_lines(folder, "train.jsonl", [_conversation(i) for i in range(8)])
    _write_lines(folder, "valid.jsonl", [_conversation(i) for i in range(4)])
    _write_lines(folder, "questions.jsonl", [_question(i) for i in range(8)])


def _conversation(i):
    question = {"role": "user", "content": "<image>\nwhat color is the shape?"}
    answer = {"role": "assistant", "content": COLORS[i % 4]}
    return {"id": f"q{i}", "messages": [question, answer], "images": [f"{i}.png"]}


def _question(i):
    return {
        "id": f"q{i}",
        "image": f"{i}.png",
        "question": "what color is the shape?",
        "answer": COLORS[i % 4],
    }


def _write_lines(folder, name, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    pathlib.Path(folder, name).write_text(text, encoding="utf-8")


def raw_records(size=4):
    """The lists that the first block of the README takes from the reader."""
    return {
        "images": [random_image(i) for i in range(size)],
        "prompts": ["<image>\nwhat color is the shape?"] * size,
        "responses": [COLORS[i % 4] for i in range(size)],
        "image": np.asarray(random_image(9)),
    }
