"""`load_mobilevlm`: loads models from the public checkpoints, as published."""

import os
import pathlib
from typing import Any

from keras_betakd.mobilevlm.backbone import MobileVLMBackbone
from keras_betakd.mobilevlm.causal_lm import MobileVLMCausalLM
from keras_betakd.mobilevlm.configurations import (
    backbone_arguments,
    check_image_settings,
    image_aspect_ratio,
    read_config,
)
from keras_betakd.mobilevlm.image_converter import MobileVLMImageConverter
from keras_betakd.mobilevlm.names import PROJECTOR, TOWER, canonical_name, targets
from keras_betakd.mobilevlm.preprocessor import MobileVLMCausalLMPreprocessor
from keras_betakd.mobilevlm.projectors import mlp_depth
from keras_betakd.mobilevlm.shapes import tensor_shapes
from keras_betakd.mobilevlm.tokenizer import MobileVLMTokenizer
from keras_betakd.vision_language.tensor_files import TensorFiles
from keras_betakd.vision_language.tensor_loading import (
    by_canonical_name,
    check_layers,
    check_tensors,
    load_tensors,
)

_TOKENIZER = "tokenizer.model"


def load_mobilevlm(
    folder: str | os.PathLike,
    vision_tower: str | os.PathLike | None = None,
    new_projector: bool | None = None,
    dtype: Any = None,
    **kwargs,
) -> MobileVLMCausalLM:
    """Loads MobileVLM V2 or LLaVA-1.5 from a folder with a public checkpoint.

    It reads the layouts of `mtgv/MobileVLM_V2-1.7B` and `-7B`, of
    `liuhaotian/llava-v1.5-7b` and `-13b`, and of `llava-hf/llava-1.5-7b-hf`:
    config.json, tokenizer.model, and weights in safetensors or `.bin` files, in one
    file or in parts. Tensors are matched with weights by name, and the match must be
    complete. They are read one at a time from memory-mapped files, so the peak memory
    is the model and copies of one tensor, not of a file.

    Args:
        folder: path of the folder, downloaded beforehand.
        vision_tower: path of a folder with a CLIP checkpoint
            (`openai/clip-vit-large-patch14-336`), for checkpoints without a vision
            tower, such as LLaVA's original one.
        new_projector: the type of a projector with random weights, `"ldpnetv2"` or
            `"mlp2x_gelu"`, to train a language model without vision
            (`mtgv/MobileLLaMA-1.4B-Chat`, `lmsys/vicuna-7b-v1.5`).
        dtype: the dtype policy of the model, for example `"bfloat16"`; the global one
            if `None`.
        **kwargs: for `MobileVLMCausalLMPreprocessor`: `sequence_length`,
            `max_images_per_prompt`, `template`.

    Returns:
        A `MobileVLMCausalLM` with its preprocessor.

    Raises:
        FileNotFoundError: a folder or one of its files does not exist.
        ValueError: the configuration is of another architecture, or one of its values
            is of a wrong type or out of its range; tensors are missing, not known, of
            another shape or type, or there twice (the message lists them), which is
            found before a model is made; a tensor holds NaN or infinite numbers; a file
            is damaged, or holds more than tensors.
        ImportError: safetensors, or PyTorch 2.6 or newer for `.bin` files, is not
            installed.

    Example:

    ```python
    teacher = load_mobilevlm("MobileVLM_V2-7B", dtype="bfloat16")
    teacher.save_to_preset("mobilevlm_v2_7b")  # loads like any preset
    student = load_mobilevlm(
        "MobileLLaMA-1.4B-Chat",
        vision_tower="clip-vit-large-patch14-336",
        new_projector="ldpnetv2",
    )
    ```
    """
    folder = pathlib.Path(folder)
    files = TensorFiles(folder, _TOKENIZER)
    config = read_config(folder)
    if new_projector is not None:
        mlp_depth(new_projector)
        config = {**config, "mm_projector_type": new_projector}
    tower = None if vision_tower is None else pathlib.Path(vision_tower)
    sources = [files] if tower is None else [TensorFiles(tower, _TOKENIZER), files]
    found = by_canonical_name(sources, canonical_name)
    if not any(name.startswith(TOWER) for name in found):
        raise ValueError(
            f"The checkpoint in '{folder}' has no vision tower. Download "
            f"{config.get('mm_vision_tower') or 'its CLIP'!r} and give its folder as "
            "`vision_tower`."
        )
    # All sizes are compared before anything is allocated by them.
    arguments, aspect_ratio = _settings(folder, config, tower)
    config_files = f"The config.json of '{folder}' or of its vision tower"
    check_layers(arguments, found, config_files)
    wanted = tensor_shapes(arguments)
    if new_projector is not None:
        wanted = {k: v for k, v in wanted.items() if not k.startswith(PROJECTOR)}
    check_tensors(wanted, found, folder)
    tokenizer = _tokenizer(folder)
    backbone = MobileVLMBackbone(**arguments, dtype=dtype)
    load_tensors(targets(backbone), found)
    converter = MobileVLMImageConverter((backbone.image_size,) * 2, aspect_ratio)
    preprocessor = MobileVLMCausalLMPreprocessor(
        tokenizer, converter, num_image_tokens=backbone.num_image_tokens, **kwargs
    )
    return MobileVLMCausalLM(backbone, preprocessor)


def _settings(folder, config, tower):
    """The arguments of the backbone, and how images become square."""
    source = f"'{folder / 'config.json'}'"
    arguments = backbone_arguments(
        config,
        None if tower is None else read_config(tower),
        source,
        None if tower is None else f"'{tower / 'config.json'}'",
    )
    for one in (folder, tower):
        if one is not None:
            check_image_settings(one, arguments["image_size"])
    return arguments, image_aspect_ratio(config, source)


def _tokenizer(folder):
    path = folder / _TOKENIZER
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no '{path}', the SentencePiece file that every Llama tokenizer "
            "is published with. Download it into the folder."
        )
    try:
        return MobileVLMTokenizer(str(path))
    except Exception as error:  # SentencePiece raises errors of several kinds
        raise ValueError(
            f"The file '{path}' cannot be read: it is damaged, or no SentencePiece "
            f"model of a Llama. Received: {type(error).__name__}: {error}. Download "
            "it again."
        ) from error
