"""Single files of tensors: safetensors, and PyTorch's `.bin`."""

import json
import math
import re
import zipfile

import ml_dtypes
import numpy as np

from keras_betakd.files import unique_keys

FLOATS = ("float64", "float32", "float16", "bfloat16")
"""The types of numbers that weights are published in."""

_SAFETENSORS_TYPES = dict(zip(("F64", "F32", "F16", "BF16"), FLOATS, strict=True))
# Below, `weights_only=True` can be made to run code (CVE-2025-32434).
_SAFE_TORCH = (2, 6)


class SafetensorsFile:
    """A safetensors file; the package compares its header with the file's size.

    Attributes:
        shapes: dict of name to shape.
        types: dict of name to the name of the numbers' type.
    """

    def __init__(self, path):
        try:
            from safetensors import safe_open
        except ImportError as error:
            raise ImportError(
                "Reading safetensors files needs the package safetensors: `pip install "
                "keras-betakd[mobilevlm]`."
            ) from error
        self._file = safe_open(path, framework="numpy")
        header = _safetensors_header(path)
        self.shapes = {name: tuple(one["shape"]) for name, one in header.items()}
        self.types = {
            name: _SAFETENSORS_TYPES.get(one["dtype"], one["dtype"])
            for name, one in header.items()
        }

    def tensor(self, name):
        """A tensor as a NumPy array."""
        return self._file.get_tensor(name)


def _safetensors_header(path):
    """The header, which the package has found to be valid but for names given twice."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size), object_pairs_hook=unique_keys)
    header.pop("__metadata__", None)
    return header


class PyTorchFile:
    """A `.bin` file of PyTorch, whatever the backend.

    Attributes:
        shapes: dict of name to shape.
        types: dict of name to the name of the numbers' type.
    """

    def __init__(self, path):
        torch = _torch()
        # Files from before PyTorch 1.6 cannot be memory-mapped.
        self._tensors = torch.load(
            path,
            map_location="cpu",
            weights_only=True,
            mmap=zipfile.is_zipfile(path),
        )
        _expect_tensors(self._tensors, torch)
        self.shapes = {name: tuple(t.shape) for name, t in self._tensors.items()}
        self.types = {
            name: str(t.dtype).removeprefix("torch.")
            for name, t in self._tensors.items()
        }
        self._bfloat16, self._bits = torch.bfloat16, torch.uint16

    def tensor(self, name):
        """A tensor as a NumPy array."""
        tensor = self._tensors[name].detach()
        if tensor.dtype != self._bfloat16:
            return np.asarray(tensor)
        # PyTorch does not convert bfloat16 to NumPy, only its bits.
        return np.asarray(tensor.view(self._bits)).view(ml_dtypes.bfloat16)


def _torch():
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "Reading .bin files needs PyTorch, whatever the backend: `pip install "
            "torch`. Or convert them to safetensors."
        ) from error
    version = tuple(map(int, re.findall(r"\d+", torch.__version__)[:2]))
    if version < _SAFE_TORCH:
        raise ImportError(
            "Reading .bin files safely needs PyTorch 2.6 or newer: before, such a file "
            f"can run any code. Received: PyTorch {torch.__version__}. Upgrade it, or "
            "convert the files to safetensors."
        )
    return torch


def _expect_tensors(found, torch):
    """Raises unless it is a dict of names and of tensors that are stored in full."""
    if not isinstance(found, dict):
        raise ValueError(f"it holds no dict of tensors, but a {type(found).__name__}")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ValueError(
                f"{name!r} is no tensor with a name, but a {type(tensor).__name__}"
            )
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise ValueError(f"{name!r} is no plain tensor (sparse, quantised or meta)")
        # A view can repeat a few numbers, and claim any size.
        needed = math.prod(tensor.shape) * tensor.element_size()
        if needed > tensor.untyped_storage().nbytes():
            raise ValueError(f"{name!r} has fewer numbers than its shape says")
