"""`save_preset`: writes a preset that plain keras-hub loads."""

import contextlib
import json
import os
import pathlib
import re
import shutil

import keras

from keras_betakd.files import atomic_write
from keras_betakd.folders import FolderOwner
from keras_betakd.models.layers import sublayers
from keras_betakd.models.preset_template import write_template

_CONFIGS = ("config.json", "task.json")
# What keras-hub writes into a preset, and the name of a chat template.
_OF_PRESETS = re.compile(
    r"(config|task|metadata|preprocessor|tokenizer|\w+_converter|prompt_template)\.json"
    r"|(model|task)(_\d+)?\.weights\.(h5|json)|assets"
)


def save_preset(model: keras.Model, folder: str | os.PathLike) -> None:
    """Saves a model as a preset that `from_preset(folder)` of keras-hub loads.

    As `model.save_to_preset(folder)`, with LoRA factors added to their kernels, but:

    - A model in mixed precision, which keras-hub saves and then cannot load ("Invalid
      dtype: mixed_bfloat16"), is saved as one in the precision of its weights. Give
      `dtype="mixed_bfloat16"` to `from_preset` to compute as in training.
    - The folder is complete or not there: an older preset is replaced as a whole.
    - The chat template that the model was tuned with is named in a file that
      `load_model` reads, where it is known.
    - A quantised model that the preset would not bring back is refused.

    Args:
        model: a `keras_hub.models.CausalLM` or `Seq2SeqLM`, such as
            `distiller.student`.
        folder: the folder; a preset in it is replaced.

    Raises:
        OSError: the folder cannot be written, or another process writes it.
        ValueError: the folder holds other things than a preset, or the model is
            quantised in a way that keras-hub cannot load again.

    Example:

    ```python
    save_preset(distiller.student, "my_student")
    keras_hub.models.CausalLM.from_preset("my_student")
    ```
    """
    folder = pathlib.Path(folder).resolve()  # behind a link, not in its place
    _expect_free(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    drafts = folder.with_name(f".{folder.name}.draft")
    with _scratch(drafts) as owner:
        draft = drafts / "preset"
        model.save_to_preset(str(draft))
        for name in _CONFIGS:
            _without_mixed_precision(draft / name)
        write_template(getattr(model, "preprocessor", None), draft)
        _expect_loadable(model, draft)
        owner.expect()
        _replace(draft, folder, drafts / "before")


@contextlib.contextmanager
def _scratch(folder):
    """A folder of this process alone, which is removed afterwards."""
    try:
        with FolderOwner(folder, "save_preset") as owner:
            # What a process that was killed has left.
            shutil.rmtree(folder / "preset", ignore_errors=True)
            try:
                yield owner
            finally:
                shutil.rmtree(folder / "preset", ignore_errors=True)
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _expect_free(folder):
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"'{folder}' is a file; a preset is a folder.")
    found = sorted(path.name for path in folder.iterdir())
    others = [name for name in found if not _OF_PRESETS.fullmatch(name)]
    if others or (found and "config.json" not in found):
        raise ValueError(
            f"The folder '{folder}' holds other things than a preset, which would be "
            f"lost. Give a folder of its own. Received: {(others or found)[:10]}"
        )


def _without_mixed_precision(path):
    if path.exists():
        config = json.loads(path.read_text(encoding="utf-8"))
        with atomic_write(path) as draft:
            draft.write_text(json.dumps(_in_weight_precision(config), indent=4))


def _in_weight_precision(config):
    """A config whose mixed policies are those of the weights, which are float32."""
    if isinstance(config, list):
        return [_in_weight_precision(item) for item in config]
    if isinstance(config, str):
        return "float32" if config in ("mixed_bfloat16", "mixed_float16") else config
    if not isinstance(config, dict):
        return config
    return {key: _in_weight_precision(value) for key, value in config.items()}


def _expect_loadable(model, draft):
    """Loads the preset of a quantised model; others need no proof and much memory."""
    quantised = _quantised(model)
    if not quantised:
        return
    cause, problem = None, "other layers or inputs would be quantised"
    try:
        found = _quantised(type(model).from_preset(str(draft)))
    except Exception as error:
        found, problem, cause = None, f"{type(error).__name__}: {error}"[:200], error
    if found != quantised:
        raise ValueError(
            "This quantised model cannot be saved as a preset: keras-hub would not "
            f"load it as it is ({problem}). Save the model before it is quantised, and "
            "quantise it once it is loaded."
        ) from cause


def _quantised(model):
    """How each quantised layer computes: its mode, and whether its inputs are too."""
    layers = [x for x in sublayers(model) if getattr(x, "quantization_mode", None)]
    return [
        (x.name, x.quantization_mode, type(getattr(x, "inputs_quantizer", None)))
        for x in layers
    ]


def _replace(draft, folder, before):
    """Puts a complete folder in the place of another, which is kept until then."""
    shutil.rmtree(before, ignore_errors=True)
    if folder.exists():
        os.replace(folder, before)
    try:
        os.replace(draft, folder)
    except OSError:
        if before.exists():
            os.replace(before, folder)
        raise
    shutil.rmtree(before, ignore_errors=True)
