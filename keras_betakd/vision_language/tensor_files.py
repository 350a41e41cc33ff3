"""Finds the tensors of a checkpoint folder, and reads them one by one."""

import pathlib

from keras_betakd.folders import inside
from keras_betakd.vision_language.fields import read_object, shown
from keras_betakd.vision_language.tensor_formats import PyTorchFile, SafetensorsFile

_KINDS = (
    ("model.safetensors.index.json", "model*.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model*.bin"),
)
# The most names in an error message.
_LISTED = 20


class TensorFiles:
    """The tensors of a folder; of safetensors and `.bin` files it reads the former.

    At first it only reads names, shapes and types; `read` then yields the tensors one
    by one, with no more than one file open at a time.

    Args:
        folder: path of the folder.
        tokenizer: text that names the tokenizer's files, for the error message that
            says what belongs into the folder.

    Attributes:
        shapes: dict of name to shape, of all tensors.
        types: dict of name to the name of the numbers' type, such as `"bfloat16"`.
        paths: dict of name to the path of its file.

    Raises:
        FileNotFoundError: there is no folder, or no file of weights in it, or a file
            that the index names is missing.
        ValueError: a file is damaged, or a `.bin` holds more than tensors; the index
            names a file outside the folder, or does not agree with the files; a tensor
            is in two files.
        ImportError: the package that reads such files is not installed.
    """

    def __init__(self, folder, tokenizer="the tokenizer"):
        self.folder = pathlib.Path(folder)
        self.shapes, self.types, self.paths = {}, {}, {}
        paths, index = _weight_files(self.folder, tokenizer)
        for path in paths:
            file = _open(path)
            self._expect_new(file.shapes, path)
            self.shapes.update(file.shapes)
            self.types.update(file.types)
            self.paths.update(dict.fromkeys(file.shapes, path))
        if index is not None:
            self._expect_agreement(*index)

    def read(self, wanted):
        """Yields `(name, array)` for each of the names in `wanted`, file by file."""
        for path in dict.fromkeys(self.paths.values()):
            names = [n for n, p in self.paths.items() if p == path and n in wanted]
            if not names:
                continue
            file = _open(path)
            for name in names:
                yield name, _checked(path, file.tensor, name)

    def _expect_new(self, names, path):
        twice = [name for name in names if name in self.paths]
        if twice:
            raise ValueError(
                f"{len(twice)} tensors are in two files, '{self.paths[twice[0]]}' and "
                f"'{path}': {twice[:_LISTED]}. The folder mixes two checkpoints; "
                "download one into a folder of its own."
            )

    def _expect_agreement(self, path, weight_map):
        """Raises unless an index names all tensors and the files they are in."""
        where = {name: found.name for name, found in self.paths.items()}
        wrong = [
            f"{name}: in {where.get(name, 'no file')}, by the index in "
            f"{weight_map.get(name, 'no file')}"
            for name in {**weight_map, **where}
            if where.get(name) != weight_map.get(name)
        ]
        if wrong:
            lines = "\n  ".join(wrong[:_LISTED])
            raise ValueError(
                f"The index '{path}' and the files that it names do not agree on "
                f"{len(wrong)} tensors. Download all of them again, into an empty "
                f"folder.\n  {lines}"
            )


def _weight_files(folder, tokenizer):
    """The files of weights, and the path and `weight_map` of their index, if any."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no folder '{folder}'. Give one that holds a checkpoint as it "
            "was published: config.json, the weights (safetensors or .bin) and "
            f"{tokenizer}."
        )
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        raise ValueError(
            f"'{folder}' holds an adapter ({adapter.name}) beside its weights, which "
            "would be left out. Merge it into the weights where it was trained, or "
            "move its files away to load the weights without it."
        )
    for index, pattern in _KINDS:
        if (folder / index).exists():
            return _indexed_files(folder / index, pathlib.Path(pattern).suffix)
        found = sorted(path for path in folder.glob(pattern) if path.is_file())
        if found:
            return found, None
    raise FileNotFoundError(
        f"The folder '{folder}' holds no weights. Expected model.safetensors or "
        "pytorch_model.bin, whole or in numbered parts. Received: "
        f"{sorted(path.name for path in folder.iterdir())[:_LISTED]}"
    )


def _indexed_files(index, suffix):
    try:
        weight_map = read_object(index).get("weight_map")
    except ValueError as error:
        raise ValueError(f"The index {error}") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(
            f"The index '{index}' is damaged: it should have a `weight_map`, a json "
            f"object of names and files. Received: {shown(weight_map)}. Download it "
            "again."
        )
    paths = {}
    for tensor, name in weight_map.items():
        if isinstance(name, str) and name in paths:
            continue
        name = _plain_name(index, tensor, name, suffix)
        paths[name] = index.parent / name
    missing = sorted(name for name, path in paths.items() if not path.is_file())
    if missing:
        raise FileNotFoundError(
            f"The index '{index.name}' names files that are not in '{index.parent}': "
            f"{missing}. Download them."
        )
    return [paths[name] for name in sorted(paths)], (index, weight_map)


def _plain_name(index, tensor, name, suffix):
    """The name, if it is that of a file of weights in the folder itself."""
    plain = isinstance(name, str) and not {"/", "\\"} & set(name)
    if not plain or not name.endswith(suffix):
        raise ValueError(
            f"The index '{index}' names no file of weights in its own folder for "
            f"{shown(tensor)}. Expected: a plain file name that ends in {suffix}. "
            f"Received: {shown(name)}. Download the index again."
        )
    try:
        inside(index.parent, name)
    except ValueError as error:
        raise ValueError(f"The index '{index}', {shown(tensor)}: {error}") from error
    return name


def _open(path):
    """Opens a file of tensors; errors name the file."""
    kind = SafetensorsFile if path.suffix == ".safetensors" else PyTorchFile
    return _checked(path, kind, path)


def _checked(path, action, argument):
    try:
        return action(argument)
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # the libraries raise errors of different kinds
        raise ValueError(
            f"The file '{path}' cannot be read: it is damaged, cut short by a broken "
            "download, or holds more than tensors (such a `.bin` is refused, for "
            f"reading it could run any code). Received: {type(error).__name__}: {error}"
        ) from error
