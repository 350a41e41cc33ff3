"""The API reference: every public name is documented there, and nothing else."""

import collections
import importlib
import pathlib
import re

PACKAGES = (
    "keras_betakd",
    "keras_betakd.betas",
    "keras_betakd.data",
    "keras_betakd.distillation",
    "keras_betakd.distribution",
    "keras_betakd.energies",
    "keras_betakd.evaluation",
    "keras_betakd.head_loss",
    "keras_betakd.mobilevlm",
    "keras_betakd.models",
    "keras_betakd.on_policy",
    "keras_betakd.preprocessing",
    "keras_betakd.qwen_vl",
)
ROOT = pathlib.Path(__file__).parent.parent


def identifiers():
    """What the pages of the reference document, in their `::: ` lines."""
    pages = sorted((ROOT / "docs" / "reference").glob("*.md"))
    return [
        name
        for page in pages
        for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
    ]


def documented(identifier):
    """The object of an identifier, a module's or one of its attributes."""
    parent, _, name = identifier.rpartition(".")
    module = importlib.import_module(parent)
    if hasattr(module, name):
        return getattr(module, name)
    return importlib.import_module(identifier)


def place(identifier):
    """Where a name is defined: the same for all packages that export it."""
    found = documented(identifier)
    # A constant does not know its module.
    module = getattr(found, "__module__", None)
    return f"{module}.{found.__qualname__}" if module else identifier.rpartition(".")[2]


def public_names():
    for package in PACKAGES:
        for name in importlib.import_module(package).__all__:
            yield f"{package}.{name}"


def test_every_public_name_is_documented_once():
    entries = collections.Counter(map(place, identifiers()))
    counts = {name: entries[place(name)] for name in public_names()}
    wrong = {name: count for name, count in counts.items() if count != 1}
    assert not wrong, f"Entries (`::: name`) in docs/reference, of 1: {wrong}"


def test_every_entry_names_something_that_exists():
    missing = []
    for name in identifiers():
        try:
            documented(name)
        except ImportError:
            missing.append(name)
    assert not missing, f"docs/reference documents what does not exist: {missing}"


def test_every_package_with_public_names_is_compared():
    listed = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "keras_betakd").rglob("__init__.py")
        if "__all__ = [" in path.read_text()
    }
    assert listed == set(PACKAGES)
