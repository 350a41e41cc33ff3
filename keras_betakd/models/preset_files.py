"""Checks the files of a preset folder before a model is made of them.

A configuration is only text: a damaged one can ask for any number of layers, or for an
embedding of terabytes. Its sizes are therefore compared with the shapes in the file of
weights, by rules that every preset keeps: a layer has a tensor at least, and the sizes
of a backbone are sizes of its tensors, but for halves and packed integers.
"""

import math
import pathlib
import re

from keras_betakd.files import read_json
from keras_betakd.folders import inside

_ADVICE = "Write or download the preset again."
# Halves of a size (Gemma's gates) in integers that are packed in pairs.
_PACKED = 4
# Parts that a preset leaves out keep the sizes of their defaults, which no tensor has.
# Below these, a size costs little, and is not compared.
_SMALL = {"width": 2**16, "layers": 1000}

_WIDTH = re.compile(r"(.*_)?((vocab|vocabulary|hidden|intermediate)_size|dims?|heads)")
_LAYERS = re.compile(r"(.*_)?num_(.*_)?layers|depth")
_OTHER_SIZE = re.compile(r".*_(size|length)")
_POSITIVE = re.compile(
    r".*(wavelength|theta|base_freq|scaling_factor|adjustment_factor|freq_factor|"
    r"soft_?cap(ping)?)"
)
_SHARE = re.compile(r"(.*_)?(dropout(_rate)?|eps|epsilon|rotary_factor)")
_NUMBER = re.compile(
    "|".join(
        f"({one.pattern})" for one in (_WIDTH, _LAYERS, _OTHER_SIZE, _POSITIVE, _SHARE)
    )
)
# Sizes of the language model itself: never 0, and always those of tensors.
_VOCABULARY = ("vocabulary_size", "text_vocab_size", "vocab_size")
_HIDDEN = ("hidden_dim", "text_hidden_size", "hidden_size")
_INNER = ("intermediate_dim", "intermediate_size")
_DEPTH = ("num_layers", "num_hidden_layers")
_HEADS = ("num_heads", "num_query_heads", "num_key_value_heads", "num_attention_heads")
_MAIN = {*_VOCABULARY, *_HIDDEN, *_DEPTH}
_NEVER_ZERO = {*_MAIN, *_HEADS, "head_dim", "image_size", "patch_size"}


def read_object(path):
    """The JSON object in a file, as a dict; an empty one if there is no file.

    Raises:
        ValueError: it is damaged, or holds something else; the message names it.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        return {}
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"'{path}' is damaged: {error}. {_ADVICE}") from error
    if not isinstance(found, dict):
        raise ValueError(
            f"'{path}' is damaged: it should hold a json object. Received: "
            f"{_shown(found)}. {_ADVICE}"
        )
    return found


def check_preset(folder, load_weights=True):
    """Raises unless the files of a preset folder can describe a model.

    Args:
        folder: path of a folder that `save_to_preset` wrote, or that holds a checkpoint
            in Hugging Face's layout, which keras-hub converts.
        load_weights: whether the sizes are compared with those of the weights.

    Raises:
        ValueError: a file is no JSON; a setting is of a wrong type or out of its range;
            a size is beyond those of the tensors; an index of weights names a file
            outside the folder. The message names the file and the setting.
    """
    folder = pathlib.Path(folder)
    config = folder / "config.json"
    found, task = read_object(config), read_object(folder / "task.json")
    settings = [(config, found)]
    if "registered_name" in found:
        inner = _section(found, "config", config)
        settings = [(config, inner)]
        if task:
            of_task = _section(task, "config", folder / "task.json")
            # Where a task has its backbone in its own file, that is the one made.
            if isinstance(of_task.get("backbone"), dict):
                where = folder / "task.json"
                settings.append((where, _section(of_task["backbone"], "config", where)))
    settings.append((folder / "task.json", task))
    for name in ("preprocessor.json", "image_converter.json"):
        settings.append((folder / name, read_object(folder / name)))
    for path, values in settings:
        _check_values(values, path)
        dtype = values.get("dtype")
        if not (dtype is None or isinstance(dtype, str) or _is_serialized(dtype)):
            raise _wrong(path, "dtype", dtype, "a name, or a serialized policy")
    shapes = _shapes(folder) if load_weights else []
    if shapes:
        for path, values in settings[:2] if task else settings[:1]:
            _check_sizes(values, shapes, path)


def _is_serialized(value):
    return isinstance(value, dict) and {"class_name", "config"} <= set(value)


def _section(values, key, path):
    if not isinstance(values.get(key), dict):
        raise _wrong(path, key, values.get(key), "a json object")
    return values[key]


def _entries(values):
    """Yields `(key, value, is_outer)` of all numbers and texts, however deep.

    An object is yielded, too, where a number is expected.
    """
    waiting = [(key, value, True) for key, value in values.items()]
    while waiting:
        key, value, is_outer = waiting.pop()
        if isinstance(value, dict):
            if value and _NUMBER.fullmatch(key):
                yield key, value, is_outer
            waiting += [(k, v, False) for k, v in value.items()]
        elif isinstance(value, list):
            waiting += [(key, v, is_outer) for v in value]
        else:
            yield key, value, is_outer


def _check_values(values, path):
    """Raises for a setting that is of a wrong type or range, whatever the model."""
    for key, value, _ in _entries(values):
        if isinstance(value, float) and math.isnan(value):
            raise _wrong(path, key, value, "a number")
        if value is None:
            continue
        if (
            _WIDTH.fullmatch(key)
            or _LAYERS.fullmatch(key)
            or _OTHER_SIZE.fullmatch(key)
        ):
            least = 1 if key in _NEVER_ZERO else 0
            if type(value) is not int or value < least:
                raise _wrong(path, key, value, f"a whole number, {least} or more")
        elif _POSITIVE.fullmatch(key) and not _in_range(value, 0, math.inf):
            raise _wrong(path, key, value, "a finite number above 0")
        elif _SHARE.fullmatch(key) and value != 0 and not _in_range(value, 0, 1):
            raise _wrong(path, key, value, "a number from 0 to 1")


def _in_range(value, low, high):
    if type(value) not in (int, float):
        return False
    return low < value <= high and value < 10**300


def _check_sizes(values, shapes, path):
    """Raises for a size that no model with weights of these shapes can have."""
    largest = _PACKED * max(max(shape, default=1) for shape in shapes)
    for key, value, is_outer in _entries(values):
        if type(value) is not int:
            continue
        is_main = is_outer and key in _MAIN
        if _LAYERS.fullmatch(key):
            limit = len(shapes) if is_main else max(len(shapes), _SMALL["layers"])
        elif _WIDTH.fullmatch(key) or key == "image_size":
            limit = largest if is_main else max(largest, _SMALL["width"])
        else:
            continue
        if value > limit:
            raise _wrong(path, key, value, _as_stored(shapes))
    _check_products(values, shapes, path)


def _check_products(values, shapes, path):
    """The same for whole matrices, whose two sizes can each be there."""
    total = sum(math.prod(shape) for shape in shapes)
    for names in ((_VOCABULARY, _HIDDEN), (_DEPTH, _HIDDEN, _INNER)):
        keys = [
            next((n for n in some if type(values.get(n)) is int), None)
            for some in names
        ]
        if None in keys:
            continue
        # A layer has two or three such matrices, which make up for halves.
        if math.prod(values[key] for key in keys) > _PACKED * total + _SMALL["width"]:
            found = {key: values[key] for key in keys}
            raise _wrong(path, " x ".join(keys), found, _as_stored(shapes))


def _as_stored(shapes):
    largest = max(max(shape, default=1) for shape in shapes)
    total = sum(math.prod(shape) for shape in shapes)
    return (
        f"one that fits the file of weights, with {len(shapes)} tensors, {total:,} "
        f"numbers and no size over {largest:,}"
    )


def _shapes(folder):
    """The shapes of all tensors in the files of weights, none if there are no files."""
    if (folder / "model.weights.h5").exists():
        files = [folder / "model.weights.h5"]
    elif (folder / "model.weights.json").exists():
        files = _shards(folder / "model.weights.json", ".h5")
    elif (folder / "model.safetensors.index.json").exists():
        files = _shards(folder / "model.safetensors.index.json", ".safetensors")
    else:
        files = sorted(folder.glob("model*.safetensors"))
    shapes = []
    for path in files:
        read = _hdf5_shapes if path.suffix == ".h5" else _safetensors_shapes
        try:
            shapes += read(path)
        except ImportError:
            raise
        except Exception as error:  # h5py raises errors of several kinds
            raise ValueError(
                f"The weights '{path}' cannot be read: they are damaged, or cut short. "
                f"Received: {type(error).__name__}: {error}. {_ADVICE}"
            ) from error
    return shapes


def _shards(index, suffix):
    """The files that an index of weights names: plain names in its own folder."""
    weight_map = _section(read_object(index), "weight_map", index)
    names = set()
    for key, value, _ in _entries(weight_map):
        plain = isinstance(value, str) and not {"/", "\\"} & set(value)
        if not plain or not value.endswith(suffix):
            raise _wrong(index, key, value, f"the name of a {suffix} file beside it")
        names.add(value)
    return [inside(index.parent, name) for name in sorted(names)]


def _hdf5_shapes(path):
    import h5py

    shapes = []

    def visit(name, entry):
        if isinstance(entry, h5py.Dataset):
            shapes.append(entry.shape or ())

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return shapes


def _safetensors_shapes(path):
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return [tuple(file.get_slice(name).get_shape()) for name in file.keys()]


def _wrong(path, key, value, expected):
    return ValueError(
        f"'{path}' has a wrong {key}. Expected: {expected}. Received: {key}="
        f"{_shown(value)}. {_ADVICE}"
    )


def _shown(value):
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
