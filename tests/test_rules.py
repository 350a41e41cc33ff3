"""The project's own rules, checked on its sources and in fresh processes."""

import ast
import graphlib
import os
import re
import subprocess
import sys

import keras
import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BACKENDS = {"jax", "torch", "tensorflow"}


def sources(*folders):
    for folder in folders:
        for parent, _, files in os.walk(os.path.join(ROOT, folder)):
            for name in files:
                if name.endswith(".py"):
                    yield os.path.relpath(os.path.join(parent, name), ROOT)


def imported_modules(path, top_level_only=False):
    with open(os.path.join(ROOT, path)) as file:
        tree = ast.parse(file.read())
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


@pytest.mark.parametrize("path", sources("keras_betakd", "examples"))
def test_only_public_keras(path):
    private = ("keras.src", "keras_hub.src")
    assert not [m for m in imported_modules(path) if m.startswith(private)]


@pytest.mark.parametrize("path", sources("examples"))
def test_examples_import_public_names_only(path):
    """Examples import from the packages that users know, not from submodules."""
    packages = "data energies evaluation files folders head_loss mobilevlm models"
    packages += " preprocessing qwen_vl"
    public = {"keras_betakd", *(f"keras_betakd.{name}" for name in packages.split())}
    with open(os.path.join(ROOT, path)) as file:
        tree = ast.parse(file.read())
    names = [node.name for node in ast.walk(tree) if isinstance(node, ast.alias)]
    assert not [name for name in names if name.startswith("_")]
    found = {m for m in imported_modules(path) if m.split(".")[0] == "keras_betakd"}
    assert found <= public


@pytest.mark.parametrize("path", sources("keras_betakd"))
def test_optional_packages_are_imported_where_they_are_used(path):
    heavy = {"keras_hub", "PIL", "matplotlib", "safetensors", "tokenizers", *BACKENDS}
    of_hub = {"vision_language", "mobilevlm", "qwen_vl", "sampler.py"}
    if of_hub & set(path.split(os.sep)):
        heavy -= {"keras_hub"}  # they extend its classes, and are imported late
    if path.endswith("_step.py"):
        heavy -= {os.path.basename(path).removesuffix("_step.py")}  # imported late
    found = {m.split(".")[0] for m in imported_modules(path, top_level_only=True)}
    assert not found & heavy


@pytest.mark.parametrize("path", sources("keras_betakd"))
def test_the_library_does_not_print(path):
    with open(os.path.join(ROOT, path)) as file:
        tree = ast.parse(file.read())
    calls = [n.func for n in ast.walk(tree) if isinstance(n, ast.Call)]
    assert "print" not in [f.id for f in calls if isinstance(f, ast.Name)]


# What each part of keras_betakd (a folder or a file) may import of the others, at the
# top or inside a function. Each part names only parts above it; `__init__` imports all.
MAY_IMPORT = {
    "backends": (),
    "files": (),
    "interrupts": (),
    "folders": (),
    "version": (),
    "distribution": (),
    "memory": ("backends", "distribution"),
    "objective": ("distribution",),
    "data": ("files", "folders"),
    "energies": ("backends", "objective"),
    "betas": ("objective",),
    "preprocessing": ("distribution", "data"),
    "vision_language": ("files", "folders"),
    "mobilevlm": ("files", "folders", "data", "preprocessing", "vision_language"),
    "qwen_vl": (
        *("backends", "files", "folders", "data", "preprocessing", "vision_language"),
    ),
    "released": ("energies", "betas"),
    "models": (
        *("backends", "files", "folders", "preprocessing", "vision_language"),
        *("mobilevlm", "qwen_vl"),
    ),
    "fingerprints": ("files", "version", "preprocessing", "models"),
    "journal": ("files", "folders", "fingerprints"),
    "head_loss": ("backends", "distribution", "objective", "energies", "models"),
    "evaluation": (
        *("files", "folders", "version", "data", "preprocessing", "models"),
        *("fingerprints", "journal"),
    ),
    "on_policy": (
        *("distribution", "data", "preprocessing", "models", "fingerprints", "journal"),
    ),
    "distillation": (
        *("backends", "files", "folders", "version", "distribution", "objective"),
        *("energies", "betas", "preprocessing", "mobilevlm", "models", "head_loss"),
        *("on_policy", "memory"),
    ),
    "evaluate": ("interrupts", "fingerprints", "evaluation"),
    "teacher_cache": (
        *("backends", "files", "folders", "betas", "preprocessing", "models"),
        *("fingerprints", "distillation"),
    ),
    "history_plot": ("files",),
    "callbacks": ("files", "history_plot"),
    "training_backup": ("files", "folders", "distillation"),
}


def own_imports(*folders):
    """Yields each file and the full name of what it imports of keras_betakd."""
    for path in sources(*folders):
        with open(os.path.join(ROOT, path)) as file:
            nodes = ast.walk(ast.parse(file.read()))
        for node in nodes:
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path} has a relative import"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            yield from ((path, n) for n in names if n.startswith("keras_betakd."))


def test_imports_run_one_way():
    parts = list(MAY_IMPORT)
    for i, part in enumerate(parts):
        assert set(MAY_IMPORT[part]) <= set(parts[:i]), f"{part} names a part below it"
    wrong = []
    for path, name in own_imports("keras_betakd"):
        part = path.split(os.sep)[1].removesuffix(".py")
        if part != "__init__" and name.split(".")[1] not in (part, *MAY_IMPORT[part]):
            allowed = ", ".join(MAY_IMPORT[part]) or "nothing"
            wrong.append(f"{path} imports {name}; {part} may import: {allowed}")
    assert not wrong, "\n".join(wrong)


def test_evaluation_knows_nothing_of_the_distiller():
    """Nor of the preparation of its batches. The test above checks other packages."""
    below = ("preprocessor", "batches", "DistillationPreprocessor", "ProcessShare")
    below = tuple(f"keras_betakd.preprocessing.{name}" for name in below)
    imports = own_imports("keras_betakd/evaluation")
    assert [pair for pair in imports if pair[1].startswith(below)] == []


@pytest.mark.parametrize("package", ["mobilevlm", "qwen_vl"])
def test_models_import_packages_with_models_in_one_function(package):
    """They are imported only to load a preset, since they import keras-hub."""
    package = f"keras_betakd.{package}"
    imports = own_imports("keras_betakd/models")
    found = [path for path, name in imports if name.startswith(package)]
    assert len(found) == 1
    at_the_top = imported_modules(found[0], top_level_only=True)
    assert not [name for name in at_the_top if name.startswith(package)]


def module_file(name):
    """The file of a module of the package by its full name, or `None`."""
    path = name.replace(".", os.sep)
    found = (f"{path}.py", os.path.join(path, "__init__.py"))
    return next((x for x in found if os.path.exists(os.path.join(ROOT, x))), None)


def imported_files(path):
    """The files that run before a module of the package does.

    Those of what it imports at its top, and of the packages that these are in, but for
    those that it is in itself.
    """
    with open(os.path.join(ROOT, path)) as file:
        body = ast.parse(file.read()).body
    imported = set()
    for node in (node for node in body if isinstance(node, ast.ImportFrom)):
        if node.module.startswith("keras_betakd"):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in inner if module_file(name)}
            imported |= modules | ({node.module} if inner - modules else set())
    around = set()
    for name in imported:
        while (name := name.rpartition(".")[0]).count("."):
            around.add(name)
    folders = [path[:i] for i, letter in enumerate(path) if letter == os.sep]
    own = {os.path.join(folder, "__init__.py") for folder in folders}
    return set(map(module_file, imported)) | set(map(module_file, around)) - own


def test_every_module_can_be_imported_first():
    """No circle of imports: none relies on an earlier import of another. Without
    `keras_betakd/__init__.py`, which imports all modules."""
    files = set(sources("keras_betakd")) - {"keras_betakd/__init__.py"}
    graph = {path: imported_files(path) & files for path in files}
    assert sum(map(len, graph.values())) > 500
    graphlib.TopologicalSorter(graph).prepare()  # raises with the circle, if there is


def test_importing_an_energy_costs_no_more_than_keras():
    """Neither keras-hub nor a second backend is imported for it."""
    code = (
        "import sys, keras; before = set(sys.modules); "
        "from keras_betakd import CosineProbsEnergy; "
        "new = {m.split('.')[0] for m in set(sys.modules) - before}; "
        "print(sorted(new & {'keras_hub', 'PIL', 'matplotlib', 'jax', 'torch', "
        "'tensorflow'}))"
    )
    backend = keras.config.backend()
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": backend},
    )
    assert result.stdout.strip() == "[]", result.stderr


def test_every_public_name_is_documented():
    import keras_betakd

    public = [n for n in dir(keras_betakd) if n[0].isupper()]
    assert len(public) >= 20
    assert [n for n in public if not getattr(keras_betakd, n).__doc__] == []


def test_every_test_that_the_table_of_bugs_names_exists():
    """A renamed test would leave a kind of bug without its test, unnoticed."""
    with open(os.path.join(ROOT, "tests", "CASES.md")) as file:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", file.read())
    assert len(named) > 80
    for name in {name for name, _ in named}:
        with open(os.path.join(ROOT, "tests", name)) as file:
            nodes = ast.walk(ast.parse(file.read()))
        tests = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
        assert not {test for file, test in named if file == name} - tests, name
