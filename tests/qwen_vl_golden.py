"""The tiny published-form checkpoints of `golden/qwen_vl`, and their numbers."""

import functools
import json
import pathlib

import numpy as np

from keras_betakd.qwen_vl import load_qwen_vl

GOLDEN = pathlib.Path(__file__).parent / "golden" / "qwen_vl"
FOLDERS = {
    "qwen2_vl": "qwen2_vl_tiny",
    "qwen2_5_vl": "qwen2_5_vl_tiny",
    "qwen3_vl": "qwen3_vl_tiny",
}
LENGTH = 63  # of the padded batch


def checkpoint(family):
    return GOLDEN / FOLDERS[family] / "checkpoint"


@functools.cache
def golden(family):
    return dict(np.load(GOLDEN / FOLDERS[family] / "expected.npz"))


def golden_model(family, **kwargs):
    options = {"min_pixels": 64, "max_pixels": 4096, "sequence_length": LENGTH}
    return load_qwen_vl(checkpoint(family), **{**options, **kwargs})


def golden_records(family):
    """Four rows: an image; two; none; one in the middle of the text."""
    path = GOLDEN / FOLDERS[family] / "texts.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    images = golden(family)
    return {
        "prompts": [_user_text(row["prompt"]) for row in rows],
        "responses": [row["answer"] for row in rows],
        "images": [[images[f"image/{name}"] for name in row["images"]] for row in rows],
        "system": ["Be brief."] * len(rows),
    }


def _user_text(prompt):
    text = prompt.split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
    return text.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>")


def on_the_left(x):
    """Inputs whose padding is on the left, as the published code decodes."""
    moved = {key: np.array(value) for key, value in x.items()}
    for i, count in enumerate(np.asarray(x["padding_mask"]).sum(axis=1)):
        for key in ("token_ids", "padding_mask", "image_sources", "position_ids"):
            moved[key][i] = np.roll(moved[key][i], -count, axis=-1)
    return moved
