"""`load_mobilevlm`: loads models from the public checkpoints, as published."""

import pathlib

from keras_betakd.mobilevlm.backbone import MobileVLMBackbone
from keras_betakd.mobilevlm.causal_lm import MobileVLMCausalLM
from keras_betakd.mobilevlm.configurations import (
    backbone_arguments,
    image_aspect_ratio,
    read_config,
)
from keras_betakd.mobilevlm.image_converter import MobileVLMImageConverter
from keras_betakd.mobilevlm.names import PROJECTOR, TOWER, canonical_name, targets
from keras_betakd.mobilevlm.preprocessor import MobileVLMCausalLMPreprocessor
from keras_betakd.mobilevlm.tensor_files import TensorFiles
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
        ValueError: the configuration is of another architecture; tensors are missing,
            not known, or of another shape (the message lists them); a file is damaged,
            or holds more than tensors.
        ImportError: safetensors, or PyTorch for `.bin` files, is not installed.

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
    tokenizer = _tokenizer(folder)
    arguments = backbone_arguments(config, tower and read_config(tower))
    backbone = MobileVLMBackbone(**arguments, dtype=dtype)
    _load_weights(backbone, found, folder, has_projector=new_projector is None)
    converter = MobileVLMImageConverter(
        (backbone.image_size,) * 2, image_aspect_ratio(config)
    )
    preprocessor = MobileVLMCausalLMPreprocessor(
        tokenizer, converter, num_image_tokens=backbone.num_image_tokens, **kwargs
    )
    return MobileVLMCausalLM(backbone, preprocessor)


def _by_canonical_name(sources):
    """Dict of canonical name to the files and the name there; later files win."""
    found = {}
    for files in sources:
        for name in files.shapes:
            canonical = canonical_name(name)
            if canonical is not None:
                found[canonical] = files, name
    return found


def _tokenizer(folder):
    path = folder / "tokenizer.model"
    if not path.exists():
        raise FileNotFoundError(
            f"There is no '{path}', the SentencePiece file that every Llama tokenizer "
            "is published with. Download it into the folder."
        )
    return MobileVLMTokenizer(str(path))


def _load_weights(backbone, found, folder, has_projector):
    wanted = targets(backbone)
    if not has_projector:
        wanted = {k: v for k, v in wanted.items() if not k.startswith(PROJECTOR)}
    _check_complete(wanted, found, folder)
    by_files = {}
    for canonical, (files, name) in found.items():
        by_files.setdefault(files, {})[name] = wanted[canonical]
    for files, names in by_files.items():
        for name, array in files.read(names):
            names[name].assign(array)


def _check_complete(wanted, found, folder):
    """Raises for all mismatches at once, before any weight is assigned."""
    missing = [name for name in wanted if name not in found]
    extra = [name for canonical, (_, name) in found.items() if canonical not in wanted]
    shapes = {name: files.shapes[theirs] for name, (files, theirs) in found.items()}
    misshapen = [
        f"{name}: {shapes[name]} instead of {target.shape}"
        for name, target in wanted.items()
        if name in shapes and shapes[name] != target.shape
    ]
    if not (missing or extra or misshapen):
        return
    kinds = {"missing": missing, "not known": extra, "of another shape": misshapen}
    raise ValueError(
        f"The tensors in '{folder}' are not those of the model that its config.json "
        "describes. Check that the folder is complete and unmixed.\n"
        + "\n".join(_listed(kind, lines) for kind, lines in kinds.items() if lines)
    )


def _listed(kind, lines):
    more = [f"and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
    return "\n  ".join([f"{len(lines)} {kind}:", *lines[:_LISTED], *more])
