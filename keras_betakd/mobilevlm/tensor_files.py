"""Reads the tensors of a checkpoint folder, from safetensors or PyTorch files."""

import json
import pathlib
import zipfile

import ml_dtypes
import numpy as np

_KINDS = (
    ("model.safetensors.index.json", "model*.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model*.bin"),
)


class TensorFiles:
    """The tensors of a folder; of safetensors and `.bin` files it reads the former.

    At first it only reads names and shapes; `read` then yields the tensors one by one,
    with no more than one file open at a time.

    Args:
        folder: path of the folder.

    Attributes:
        shapes: dict of name to shape, of all tensors.

    Raises:
        FileNotFoundError: there is no folder, or no file of weights in it, or a file
            that the index names is missing.
        ValueError: a file is damaged, or a `.bin` holds more than tensors.
        ImportError: the package that reads such files is not installed.
    """

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.shapes, self._files = {}, {}
        for path in _weight_files(self.folder):
            shapes = _open(path).shapes
            self.shapes.update(shapes)
            self._files[path] = list(shapes)

    def read(self, wanted):
        """Yields `(name, array)` for each of the names in `wanted`, file by file."""
        for path, names in self._files.items():
            names = [name for name in names if name in wanted]
            if not names:
                continue
            file = _open(path)
            for name in names:
                yield name, file.tensor(name)


def _weight_files(folder):
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no folder '{folder}'. Give one that holds a checkpoint as it "
            "was published: config.json, the weights (safetensors or .bin) and "
            "tokenizer.model."
        )
    for index, pattern in _KINDS:
        if (folder / index).exists():
            return _indexed_files(folder / index)
        found = sorted(folder.glob(pattern))
        if found:
            return found
    raise FileNotFoundError(
        f"The folder '{folder}' holds no weights. Expected model.safetensors or "
        "pytorch_model.bin, whole or in numbered parts. Received: "
        f"{sorted(path.name for path in folder.iterdir())[:20]}"
    )


def _indexed_files(index):
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(
            f"The index '{index}' is damaged: it should be a json file with a "
            f"`weight_map`. Received: {error!r}. Download it again."
        ) from error
    paths = [index.parent / name for name in sorted(names)]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise FileNotFoundError(
            f"The index '{index.name}' names files that are not in '{index.parent}': "
            f"{missing}. Download them."
        )
    return paths


def _open(path):
    """Opens a file of tensors; errors name the file."""
    kind = _SafetensorsFile if path.suffix == ".safetensors" else _PyTorchFile
    try:
        return kind(path)
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # the libraries raise errors of different kinds
        raise ValueError(
            f"The file '{path}' cannot be read: it is damaged, cut short by a broken "
            "download, or holds more than tensors (such a `.bin` is refused, for "
            f"reading it could run any code). Received: {type(error).__name__}: {error}"
        ) from error


class _SafetensorsFile:
    def __init__(self, path):
        try:
            from safetensors import safe_open
        except ImportError as error:
            raise ImportError(
                "Reading safetensors files needs the package safetensors: `pip install "
                "keras-betakd[mobilevlm]`."
            ) from error
        self._file = safe_open(path, framework="numpy")
        self.shapes = {
            name: tuple(self._file.get_slice(name).get_shape())
            for name in self._file.keys()
        }

    def tensor(self, name):
        return self._file.get_tensor(name)


class _PyTorchFile:
    def __init__(self, path):
        try:
            import torch
        except ImportError as error:
            raise ImportError(
                "Reading .bin files needs PyTorch, whatever the backend: `pip install "
                "torch`. Or convert them to safetensors."
            ) from error
        # Files from before PyTorch 1.6 cannot be memory-mapped.
        self._tensors = torch.load(
            path,
            map_location="cpu",
            weights_only=True,
            mmap=zipfile.is_zipfile(path),
        )
        self.shapes = {name: tuple(t.shape) for name, t in self._tensors.items()}
        self._bfloat16, self._bits = torch.bfloat16, torch.uint16

    def tensor(self, name):
        tensor = self._tensors[name].detach()
        if tensor.dtype != self._bfloat16:
            return np.asarray(tensor)
        # PyTorch does not convert bfloat16 to NumPy, only its bits.
        return np.asarray(tensor.view(self._bits)).view(ml_dtypes.bfloat16)
