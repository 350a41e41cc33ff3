"""`load_model`: loads a generative model of any task class from a preset."""

import json
import pathlib

import keras

# `model_type` of the public checkpoints that keras-hub cannot convert.
_MOBILEVLM_TYPES = ("mobilevlm", "llava", "llava_llama")


def load_model(preset, **kwargs):
    """Loads a generative model of keras-hub from a preset, with its preprocessor.

    `keras_hub.models.CausalLM.from_preset` loads decoder-only models alone; this loads
    encoder-decoder ones (BLIP-2 with Flan-T5) and public checkpoints of MobileVLM V2
    and LLaVA-1.5 as well, and its errors say what to do.

    Args:
        preset: a folder that `save_to_preset` wrote, the name of a built-in preset, a
            handle such as `"hf://..."`, `"kaggle://..."`, or a folder with a public
            checkpoint of MobileVLM V2 or LLaVA-1.5 that holds its vision tower.
        **kwargs: as for `keras_hub.models.CausalLM.from_preset`, for example
            `dtype="bfloat16"` or `load_weights=False`; for a public checkpoint as for
            `keras_betakd.mobilevlm.load_mobilevlm`.

    Returns:
        A `keras_hub.models.CausalLM` or `keras_hub.models.Seq2SeqLM`.

    Raises:
        ValueError: it cannot be loaded. The message includes keras-hub's own.

    Example:

    ```python
    teacher = load_model("gemma3_instruct_12b_text", dtype="bfloat16")
    student = load_model("./my_student")
    ```
    """
    import keras_hub

    # The import also registers its classes with Keras.
    from keras_betakd.mobilevlm import load_mobilevlm

    preset = str(preset)
    folder = pathlib.Path(preset)
    if "://" not in preset and ("/" in preset or folder.exists()):
        _check_folder(folder)
    if _read(folder / "config.json").get("model_type") in _MOBILEVLM_TYPES:
        return load_mobilevlm(folder, **kwargs)
    classes = [keras_hub.models.CausalLM, keras_hub.models.Seq2SeqLM]
    named = _task_class(folder)
    classes = [named] if named else classes
    if _was_mixed(folder):
        # keras-hub would convert any other policy to the current one, but does not
        # recognize mixed ones by name.
        kwargs = {"dtype": keras.config.dtype_policy(), **kwargs}
    errors = []
    for cls in classes:
        try:
            return cls.from_preset(preset, **kwargs)
        except Exception as error:  # downloads and files raise errors of many kinds
            errors.append(error)
    raise ValueError(
        f"The preset {preset!r} cannot be loaded. Give a folder that `save_to_preset` "
        "of a keras-hub model wrote, the name of a built-in preset (all of them: "
        "`keras_hub.models.CausalLM.presets`), or a handle such as 'hf://...'; weights "
        "that are not on this machine are downloaded, and some want a licence accepted "
        "and a login first. Received from keras-hub: "
        + " | ".join(dict.fromkeys(f"{type(e).__name__}: {e}" for e in errors))
    ) from errors[0]


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


def _task_class(folder):
    """The class that a local preset was saved from."""
    import keras_hub

    name = _read(folder / "task.json").get("class_name", "")
    return getattr(keras_hub.models, name, None)


def _was_mixed(folder):
    """Whether a local preset was saved from a model in mixed precision."""
    policy = _read(folder / "config.json").get("config", {}).get("dtype")
    name = policy.get("config", {}).get("name") if isinstance(policy, dict) else policy
    return "mixed" in str(name)


def _read(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
