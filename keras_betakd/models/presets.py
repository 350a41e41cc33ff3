"""`load_model`: loads a generative model of any task class from a preset."""

import math
import os
import pathlib
import re

import keras
from keras import ops

from keras_betakd.models.preset_files import check_preset, read_object
from keras_betakd.models.preset_template import TEMPLATE_FILE, read_template
from keras_betakd.preprocessing.chat_templates import template_of_preset
from keras_betakd.preprocessing.prompt_templates import remember_template

# How many numbers of a weight are looked at one by one together.
_AT_ONCE = 2**22

# Arguments of the loaders of public checkpoints.
_OF_CHECKPOINTS = {
    *("min_pixels", "max_pixels", "sequence_length", "max_images_per_prompt"),
    *("prompt_template", "template", "vision_tower", "new_projector"),
}
# `model_type` of the public checkpoints that keras-hub cannot convert.
_MOBILEVLM_TYPES = ("mobilevlm", "llava", "llava_llama")
# Mixtures of experts and models with sound, too: the error says what is supported.
_QWEN_VL_TYPES = re.compile(r"qwen[\d_]+(vl|omni)\w*")


def load_model(preset: str | os.PathLike, **kwargs) -> keras.Model:
    """Loads a generative model of keras-hub from a preset, with its preprocessor.

    `keras_hub.models.CausalLM.from_preset` loads decoder-only models alone; this loads
    encoder-decoder ones (BLIP-2 with Flan-T5) and public checkpoints of MobileVLM V2,
    LLaVA-1.5, Qwen2-VL, Qwen2.5-VL and Qwen3-VL as well, and its errors say what to do.
    The settings in a folder are checked, and its sizes compared with those of the
    weights, before a model is made.

    Args:
        preset: a folder that `save_to_preset` wrote, the name of a built-in preset, a
            handle such as `"hf://..."`, `"kaggle://..."`, or a folder with a public
            checkpoint of one of those five that holds its vision tower.
        **kwargs: as for `keras_hub.models.CausalLM.from_preset`, for example
            `dtype="bfloat16"` or `load_weights=False`; for a public checkpoint as for
            `keras_betakd.mobilevlm.load_mobilevlm` or
            `keras_betakd.qwen_vl.load_qwen_vl`.

    Returns:
        A `keras_hub.models.CausalLM` or `keras_hub.models.Seq2SeqLM`. Its preprocessor
        knows the chat template of an instruction-tuned preset, by the preset's name or
        by what `save_preset` wrote, for `prompt_template="auto"`.

    Raises:
        ValueError: it cannot be loaded (the message includes keras-hub's own); a
            setting is of a wrong type or out of its range, or does not fit the weights;
            a weight holds NaN or infinite numbers.
        FileNotFoundError: a public checkpoint lacks a file.

    Example:

    ```python
    teacher = load_model("gemma3_instruct_12b_text", dtype="bfloat16")
    student = load_model("./my_student")
    ```
    """

    # The imports also register their classes with Keras.
    from keras_betakd.mobilevlm import load_mobilevlm
    from keras_betakd.qwen_vl import load_qwen_vl

    preset = str(preset)
    folder = pathlib.Path(preset)
    if "://" not in preset and ("/" in preset or folder.exists()):
        _check_folder(folder)
    model_type = read_object(folder / "config.json").get("model_type")
    if model_type in _MOBILEVLM_TYPES:
        return load_mobilevlm(folder, **kwargs)
    if isinstance(model_type, str) and _QWEN_VL_TYPES.fullmatch(model_type):
        return load_qwen_vl(folder, **kwargs)
    _expect_no_other(kwargs, preset)
    load_weights = kwargs.get("load_weights", True)
    check_preset(folder, load_weights)
    classes = _task_classes(folder)
    if _was_mixed(folder):
        # keras-hub would convert any other policy to the current one, but does not
        # recognize mixed ones by name.
        kwargs = {"dtype": keras.config.dtype_policy(), **kwargs}
    errors = []
    for cls in classes:
        try:
            model = cls.from_preset(preset, **kwargs)
        except Exception as error:  # downloads and files raise errors of many kinds
            errors.append(error)
            continue
        if load_weights:
            _check_finite(model, preset)
        _note_template(model, preset, folder)
        return model
    raise ValueError(
        f"The preset {preset!r} cannot be loaded. Give a folder that `save_to_preset` "
        "of a keras-hub model wrote, the name of a built-in preset (all of them: "
        "`keras_hub.models.CausalLM.presets`), or a handle such as 'hf://...'; weights "
        "that are not on this machine are downloaded, and some want a licence accepted "
        "and a login first. Received from keras-hub: "
        + " | ".join(dict.fromkeys(f"{type(e).__name__}: {e}" for e in errors))
    ) from errors[0]


def _expect_no_other(kwargs, preset):
    """Raises for arguments that keras-hub would take for a preset, and not use."""
    unused = sorted(_OF_CHECKPOINTS & set(kwargs))
    if unused:
        raise ValueError(
            f"{', '.join(unused)} can be given where a published checkpoint is loaded; "
            f"{preset!r} is a preset, which has its own. Set it on the loaded model, "
            "for example `model.preprocessor.sequence_length` or "
            "`model.preprocessor.image_converter.max_pixels`."
        )


def _note_template(model, preset, folder):
    """Notes which chat template the model was tuned with, where that is known."""
    preprocessor = getattr(model, "preprocessor", None)
    if preprocessor is None:
        return
    if not folder.is_dir():
        remember_template(preprocessor, template_of_preset(preset))
    elif (folder / TEMPLATE_FILE).exists():
        remember_template(preprocessor, read_template(folder))


def _check_folder(folder):
    if not folder.is_dir():
        raise ValueError(
            f"There is no preset folder '{folder}'. Give a folder that "
            "`save_to_preset` wrote, or the name or handle of a preset."
        )
    if not (folder / "config.json").exists():
        found = sorted(path.name for path in folder.iterdir())
        raise ValueError(
            f"The folder '{folder}' is no preset: it has no config.json. Give one that "
            f"`save_to_preset` wrote. Received: {found[:10]}"
        )


def _task_classes(folder):
    """The class that a local preset was saved from, or else those that it may be of."""
    import keras_hub

    tasks = (keras_hub.models.CausalLM, keras_hub.models.Seq2SeqLM)
    name = str(read_object(folder / "task.json").get("class_name"))
    named = getattr(keras_hub.models, name, None)
    return [named] if isinstance(named, type) and issubclass(named, tasks) else tasks


def _was_mixed(folder):
    """Whether a local preset was saved from a model in mixed precision."""
    config = read_object(folder / "config.json").get("config")
    policy = config.get("dtype") if isinstance(config, dict) else None
    policy = policy.get("config") if isinstance(policy, dict) else policy
    return "mixed" in str(policy.get("name") if isinstance(policy, dict) else policy)


def _check_finite(model, preset):
    """Raises if a weight holds NaN or infinite numbers, as after a broken download."""
    for weight in model.weights:
        if not keras.backend.is_float_dtype(weight.dtype):
            continue
        if not _is_finite(weight):
            raise ValueError(
                f"The weight {weight.path!r} of the preset {preset!r} holds NaN or "
                f"infinite numbers in {weight.dtype}, so every output of the model "
                "would. If it was saved in another precision, load it with that "
                "`dtype` ('bfloat16' instead of 'float16'); else download the preset "
                "again, or take an earlier one of the training."
            )


def _is_finite(weight):
    # NaN and infinity are never lost in a sum. One that overflows is looked into, in
    # blocks of rows, so that little memory is needed beside the weight.
    if ops.isfinite(ops.sum(weight)):
        return True
    if not weight.shape:
        return False
    rows = weight.shape[0]
    at_once = max(1, _AT_ONCE * rows // max(1, math.prod(weight.shape)))
    blocks = (weight[start : start + at_once] for start in range(0, rows, at_once))
    return all(ops.all(ops.isfinite(block)) for block in blocks)
