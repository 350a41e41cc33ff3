"""`load_mobilevlm`: loads models from the public checkpoints, as published."""

import pathlib

import numpy as np

from keras_betakd.mobilevlm.backbone import MobileVLMBackbone
from keras_betakd.mobilevlm.causal_lm import MobileVLMCausalLM
from keras_betakd.mobilevlm.configurations import (
    backbone_arguments,
    check_image_settings,
    image_aspect_ratio,
    read_config,
)
from keras_betakd.mobilevlm.fields import shown
from keras_betakd.mobilevlm.image_converter import MobileVLMImageConverter
from keras_betakd.mobilevlm.names import PROJECTOR, TOWER, canonical_name, targets
from keras_betakd.mobilevlm.preprocessor import MobileVLMCausalLMPreprocessor
from keras_betakd.mobilevlm.projectors import mlp_depth
from keras_betakd.mobilevlm.shapes import tensor_shapes
from keras_betakd.mobilevlm.tensor_files import TensorFiles
from keras_betakd.mobilevlm.tensor_formats import FLOATS
from keras_betakd.mobilevlm.tokenizer import MobileVLMTokenizer

# The most lines of each kind of mismatch in an error message.
_LISTED = 20


def load_mobilevlm(folder, vision_tower=None, new_projector=None, dtype=None, **kwargs):
    """Loads MobileVLM V2 or LLaVA-1.5 from a folder with a public checkpoint.

    It reads the layouts of `mtgv/MobileVLM_V2-1.7B` and `-7B`, of
    `liuhaotian/llava-v1.5-7b` and `-13b`, and of `llava-hf/llava-1.5-7b-hf`:
    config.json, tokenizer.model, and weights in safetensors or `.bin` files, in one
    file or in parts. Tensors are matched with weights by name, and the match must be
    complete. They are read one at a time from memory-mapped files, so the peak memory
    is the model and one of its tensors (in float32).

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
    files = TensorFiles(folder)
    config = read_config(folder)
    if new_projector is not None:
        mlp_depth(new_projector)
        config = {**config, "mm_projector_type": new_projector}
    tower = None if vision_tower is None else pathlib.Path(vision_tower)
    sources = [files] if tower is None else [TensorFiles(tower), files]
    found = _by_canonical_name(sources)
    if not any(name.startswith(TOWER) for name in found):
        raise ValueError(
            f"The checkpoint in '{folder}' has no vision tower. Download "
            f"{config.get('mm_vision_tower') or 'its CLIP'!r} and give its folder as "
            "`vision_tower`."
        )
    # All sizes are compared before anything is allocated by them.
    arguments, aspect_ratio = _settings(folder, config, tower)
    _check_tensors(arguments, found, folder, has_projector=new_projector is None)
    tokenizer = _tokenizer(folder)
    backbone = MobileVLMBackbone(**arguments, dtype=dtype)
    _load_weights(backbone, found)
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


def _by_canonical_name(sources):
    """Dict of canonical name to the files and the name there; later files win."""
    found = {}
    for files in sources:
        own = {}
        for name in files.shapes:
            canonical = canonical_name(name)
            if canonical in own:
                raise ValueError(
                    f"The folder '{files.folder}' has one tensor under two names, "
                    f"{own[canonical][1]!r} and {name!r}. It mixes two checkpoints; "
                    "download one into a folder of its own."
                )
            if canonical is not None:
                own[canonical] = files, name
        found |= own
    return found


def _tokenizer(folder):
    path = folder / "tokenizer.model"
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


def _load_weights(backbone, found):
    wanted, by_files = targets(backbone), {}
    for canonical, (files, name) in found.items():
        by_files.setdefault(files, {})[name] = wanted[canonical]
    for files, names in by_files.items():
        for name, array in files.read(names):
            values = names[name].values(array)
            _check_finite(values, array, name, files.paths[name])
            names[name].variable.assign(values)


def _check_finite(values, array, name, path):
    # Finite numbers have a finite sum in float64, and it needs no second array.
    if np.isfinite(np.sum(values, dtype="float64")):
        return
    if np.isfinite(np.sum(array, dtype="float64")):
        raise ValueError(
            f"The tensor {name!r} in '{path}' has numbers that are infinite in "
            f"{values.dtype}. Load the model with another `dtype`, such as 'bfloat16'."
        )
    raise ValueError(
        f"The tensor {name!r} in '{path}' holds NaN or infinite numbers, so every "
        "output of the model would. Download the file again; if it was trained to "
        "that, take an earlier checkpoint."
    )


def _check_tensors(arguments, found, folder, has_projector):
    """Raises for all mismatches at once, before a model is made."""
    for key in ("num_layers", "vision_num_layers"):
        # Each layer has a tensor at least; for a wild number none is listed.
        if arguments[key] > len(found):
            raise ValueError(
                f"The config.json of '{folder}' or of its vision tower describes "
                f"{shown(arguments[key])} layers ({key}), but there are only "
                f"{len(found)} tensors. Download config.json again."
            )
    wanted = tensor_shapes(arguments)
    if not has_projector:
        wanted = {k: v for k, v in wanted.items() if not k.startswith(PROJECTOR)}
    missing = [name for name in wanted if name not in found]
    extra = [name for canonical, (_, name) in found.items() if canonical not in wanted]
    shapes = {name: files.shapes[theirs] for name, (files, theirs) in found.items()}
    misshapen = [
        f"{name}: {shapes[name]} instead of {shape}"
        for name, shape in wanted.items()
        if name in shapes and shapes[name] != shape
    ]
    types = {name: files.types[theirs] for name, (files, theirs) in found.items()}
    mistyped = [
        f"{name}: {types[name]} instead of one of {FLOATS}"
        for name in wanted
        if name in types and types[name] not in FLOATS
    ]
    kinds = {
        "missing": missing,
        "not known": extra,
        "of another shape": misshapen,
        "of another type": mistyped,
    }
    if not any(kinds.values()):
        return
    raise ValueError(
        f"The tensors in '{folder}' are not those of the model that its config.json "
        "describes. Check that the folder is complete and unmixed.\n"
        + "\n".join(_listed(kind, lines) for kind, lines in kinds.items() if lines)
    )


def _listed(kind, lines):
    more = [f"and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
    return "\n  ".join([f"{len(lines)} {kind}:", *lines[:_LISTED], *more])
