"""`load_qwen_vl`: loads models from the public checkpoints, as published."""

import os
import pathlib
from typing import Any

import numpy as np

from keras_betakd.qwen_vl.backbone import QwenVLBackbone
from keras_betakd.qwen_vl.causal_lm import QwenVLCausalLM
from keras_betakd.qwen_vl.configurations import ARCHITECTURE, backbone_arguments
from keras_betakd.qwen_vl.image_converter import QwenVLImageConverter
from keras_betakd.qwen_vl.image_settings import read_image_settings
from keras_betakd.qwen_vl.names import EMBEDDING, HEAD, canonical_name, targets
from keras_betakd.qwen_vl.preprocessor import QwenVLCausalLMPreprocessor
from keras_betakd.qwen_vl.published_tokenizer import FILES, read_tokenizer
from keras_betakd.qwen_vl.shapes import tensor_shapes
from keras_betakd.vision_language.fields import Fields, read_object
from keras_betakd.vision_language.tensor_files import TensorFiles
from keras_betakd.vision_language.tensor_loading import (
    by_canonical_name,
    check_layers,
    check_tensors,
    load_tensors,
)

_TEMPLATES = {
    "qwen2_vl": "qwen2.5_vl",
    "qwen2_5_vl": "qwen2.5_vl",
    "qwen3_vl": "qwen3_vl",
}
# Rows of the embedding that are compared with the LM head together.
_ROWS = 4096


def load_qwen_vl(
    folder: str | os.PathLike,
    dtype: Any = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    sequence_length: int = 2048,
    **kwargs,
) -> QwenVLCausalLM:
    """Loads Qwen2-VL, Qwen2.5-VL or dense Qwen3-VL from a folder with its checkpoint.

    It reads the layouts of `Qwen/Qwen2-VL-2B-Instruct`,
    `Qwen/Qwen2.5-VL-3B-Instruct`, `Qwen/Qwen3-VL-2B-Instruct` and of the other sizes,
    and what fine-tuning has saved in newer forms of them: config.json,
    preprocessor_config.json, the tokenizer's files, and weights in safetensors or
    `.bin` files, in one file or in parts. Tensors are matched with weights by name, and
    the match must be complete. They are read one at a time from memory-mapped files, so
    the peak memory is the model and copies of one tensor, not of a file.

    Args:
        folder: path of the folder, downloaded beforehand.
        dtype: the dtype policy of the model, for example `"bfloat16"`; the global one
            if `None`.
        min_pixels: the fewest pixels of a resized image, which has a token for each
            28 x 28 of them (32 x 32 in Qwen3-VL). 256 tokens by default.
        max_pixels: the most. 1280 tokens by default, as Qwen's example suggests: the
            published files allow 4 to 16384 tokens, which few can train with. A folder
            that allows 1280 tokens or fewer is taken at its word.
        sequence_length: int, tokens of a sequence, those of its images included.
        **kwargs: for `QwenVLCausalLMPreprocessor`, such as `prompt_template`. By
            default that is the family's.

    Returns:
        A `QwenVLCausalLM` with its preprocessor.

    Raises:
        FileNotFoundError: the folder or one of its files does not exist.
        ValueError: the configuration is of another architecture, or one of its values
            is of a wrong type or out of its range; tensors are missing, not known, of
            another shape or type, or there twice (the message lists them), which is
            found before a model is made; a tensor holds NaN or infinite numbers; a file
            is damaged, or holds more than tensors.
        ImportError: safetensors, or PyTorch 2.6 or newer for `.bin` files, is not
            installed.

    Example:

    ```python
    teacher = load_qwen_vl("Qwen2.5-VL-7B-Instruct", dtype="bfloat16")
    student = load_qwen_vl("Qwen2.5-VL-3B-Instruct", dtype="mixed_bfloat16")
    teacher.save_to_preset("qwen2_5_vl_7b")  # loads like any preset
    ```
    """
    folder = pathlib.Path(folder)
    files = TensorFiles(folder, FILES)
    path = folder / "config.json"
    config = Fields(read_object(path), f"'{path}'", ARCHITECTURE)
    arguments = backbone_arguments(config.values, config.source)
    # All sizes are compared before anything is allocated by them.
    found = _compared(arguments, files, folder)
    settings = read_image_settings(folder, arguments)
    tokenizer = read_tokenizer(folder)
    _check_tokens(config, arguments, tokenizer)
    lowest, highest = settings.limits(min_pixels, max_pixels)
    converter = QwenVLImageConverter(
        patch_size=arguments["patch_size"],
        spatial_merge_size=arguments["spatial_merge_size"],
        min_pixels=lowest,
        max_pixels=highest,
        mean=settings.mean,
        std=settings.std,
    )
    kwargs.setdefault("prompt_template", _TEMPLATES[arguments["family"]])
    preprocessor = QwenVLCausalLMPreprocessor(
        tokenizer, converter, sequence_length=sequence_length, **kwargs
    )
    backbone = QwenVLBackbone(**arguments, dtype=dtype)
    load_tensors(targets(backbone), found)
    return QwenVLCausalLM(backbone, preprocessor)


def _compared(arguments, files, folder):
    """The tensors by canonical name, which are those of the configuration."""
    found = by_canonical_name([files], canonical_name)
    check_layers(arguments, found, f"The config.json of '{folder}'")
    wanted = tensor_shapes(arguments)
    has_copy = arguments["tie_word_embeddings"] and HEAD in found
    if has_copy:
        wanted[HEAD] = wanted[EMBEDDING]
    check_tensors(wanted, found, folder)
    if has_copy:
        _check_copy(found)
        del found[HEAD]
    return found


def _check_copy(found):
    """Raises unless the LM head of a tied model is its embedding, to the last bit."""
    files, head = found[HEAD]
    embedding = found[EMBEDDING][1]
    arrays = dict(files.read({head, embedding}))
    for start in range(0, len(arrays[head]), _ROWS):
        rows = slice(start, start + _ROWS)
        # Numbers that are none are found later, in the embedding.
        one, other = arrays[head][rows], arrays[embedding][rows]
        if not np.array_equal(one, other, equal_nan=True):
            raise ValueError(
                f"The tensor {head!r} in '{files.paths[head]}' is not equal to "
                f"{embedding!r}, although config.json says tie_word_embeddings=true: "
                "one of them would be lost. If the head was trained on its own, set "
                "tie_word_embeddings to false; else download the folder again."
            )


def _check_tokens(config, arguments, tokenizer):
    """Raises unless the tokenizer is that of the model."""
    count, rows = tokenizer.vocabulary_size(), arguments["vocabulary_size"]
    if count > rows:
        raise config.error(
            "vocab_size", f"{count} or more, the tokens of the folder's tokenizer"
        )
    for name in ("image_token_id", "vision_start_token_id", "vision_end_token_id"):
        config.expect(name, None, getattr(tokenizer, name))
