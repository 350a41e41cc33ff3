"""What distinguishes Qwen2-VL, Qwen2.5-VL and Qwen3-VL from each other."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Family:
    """The parts of the architecture that one published family fixes.

    Attributes:
        vision_rms_norm: whether the vision encoder normalises by the root mean square,
            without bias; else by mean and variance, with one.
        vision_gated: whether its feed-forward layers are gated (SwiGLU).
        vision_activation: `"silu"`, `"quick_gelu"` or `"gelu_tanh"`, in them.
        windows: whether most of its blocks attend within windows alone.
        patch_bias: whether the patch embedding has a bias.
        position_table: whether learned position embeddings are added to the patches.
        qkv_bias: whether queries, keys and values of the decoder have biases.
        qk_norm: whether its queries and keys are normalised, head by head.
        interleaved_axes: whether the three axes of the rotary positions take turns from
            pair to pair; else each axis has a section of pairs.
    """

    vision_rms_norm: bool
    vision_gated: bool
    vision_activation: str
    windows: bool
    patch_bias: bool
    position_table: bool
    qkv_bias: bool
    qk_norm: bool
    interleaved_axes: bool


FAMILIES = {
    "qwen2_vl": Family(
        vision_rms_norm=False,
        vision_gated=False,
        vision_activation="quick_gelu",
        windows=False,
        patch_bias=False,
        position_table=False,
        qkv_bias=True,
        qk_norm=False,
        interleaved_axes=False,
    ),
    "qwen2_5_vl": Family(
        vision_rms_norm=True,
        vision_gated=True,
        vision_activation="silu",
        windows=True,
        patch_bias=False,
        position_table=False,
        qkv_bias=True,
        qk_norm=False,
        interleaved_axes=False,
    ),
    "qwen3_vl": Family(
        vision_rms_norm=False,
        vision_gated=False,
        vision_activation="gelu_tanh",
        windows=False,
        patch_bias=True,
        position_table=True,
        qkv_bias=False,
        qk_norm=True,
        interleaved_axes=True,
    ),
}
"""The families by the `model_type` of their published configuration."""


def family_of(name):
    """The `Family` of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in FAMILIES:
        raise ValueError(
            f"`family` must be one of {sorted(FAMILIES)}. Received: family={name!r}"
        )
    return FAMILIES[name]
