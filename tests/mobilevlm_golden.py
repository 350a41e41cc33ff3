"""The tiny MobileVLM and LLaVA of `golden/mobilevlm.npz`."""

import functools
import pathlib

import numpy as np

from keras_betakd.mobilevlm import MobileVLMBackbone, MobileVLMCausalLM
from keras_betakd.mobilevlm.names import targets

GOLDEN = pathlib.Path(__file__).parent / "golden"
KINDS = {"mobilevlm": "ldpnetv2", "llava": "mlp2x_gelu"}
SIZES = {
    "vocabulary_size": 97,
    "num_layers": 2,
    "num_query_heads": 4,
    "num_key_value_heads": 2,
    "hidden_dim": 48,
    "intermediate_dim": 88,
    "vision_num_layers": 3,
    "vision_num_heads": 4,
    "vision_hidden_dim": 32,
    "vision_intermediate_dim": 80,
    "image_size": 56,
    "patch_size": 14,
    "image_grid_size": 2,
    "layer_norm_epsilon": 1e-5,
}


@functools.cache
def golden():
    return dict(np.load(GOLDEN / "mobilevlm.npz"))


def tensors(kind):
    """The weights of a kind by the names of the public checkpoints."""
    found = {k[2:]: v for k, v in golden().items() if k.startswith("w/")}
    if kind == "llava":
        found = {k: v for k, v in found.items() if "mm_projector" not in k}
        own = {k[8:]: v for k, v in golden().items() if k.startswith("llava_w/")}
        found |= own
    return found


def golden_model(kind, **kwargs):
    backbone = MobileVLMBackbone(**SIZES, projector_type=KINDS[kind], **kwargs)
    weights = tensors(kind)
    for name, target in targets(backbone).items():
        target.assign(weights[name])
    return MobileVLMCausalLM(backbone)


def batch(case, tokens, room=0):
    """Inputs of batch A or B, each image as `tokens` tokens, and `room` behind."""
    ids, mask = golden()[f"{case}/input_ids"], golden()[f"{case}/attention_mask"]
    rows = []
    for row, kept in zip(ids, mask, strict=True):
        times = np.where(row == -200, tokens, 1) * kept
        rows.append(np.repeat(row, times))
    length = ids.shape[1] - 1 + tokens + room
    token_ids = np.zeros((len(rows), length), "int32")
    padding_mask = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        token_ids[i, : len(row)], padding_mask[i, : len(row)] = row, True
    pixels = golden()["in/pixels"].transpose(0, 2, 3, 1)[: len(rows), None]
    return {"images": pixels, "token_ids": token_ids, "padding_mask": padding_mask}
