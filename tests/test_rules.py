"""The project's own rules, checked on its sources and in fresh processes."""

import ast
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


@pytest.mark.parametrize("path", sources("keras_betakd"))
def test_optional_packages_are_imported_where_they_are_used(path):
    heavy = {"keras_hub", "PIL", "matplotlib", "safetensors", *BACKENDS}
    if path.startswith(os.path.join("keras_betakd", "mobilevlm")):
        heavy -= {"keras_hub"}  # its models are keras-hub's, and import themselves
    found = {m.split(".")[0] for m in imported_modules(path, top_level_only=True)}
    assert not found & heavy


@pytest.mark.parametrize("path", sources("keras_betakd"))
def test_the_library_does_not_print(path):
    with open(os.path.join(ROOT, path)) as file:
        tree = ast.parse(file.read())
    calls = [n.func for n in ast.walk(tree) if isinstance(n, ast.Call)]
    assert "print" not in [f.id for f in calls if isinstance(f, ast.Name)]


def test_data_and_evaluation_know_nothing_of_the_distiller():
    below = {
        "keras_betakd.distiller",
        "keras_betakd.beta",
        "keras_betakd.preprocessing",
    }
    for path in sources("keras_betakd/data", "keras_betakd/evaluation"):
        assert not below & set(imported_modules(path)), path


@pytest.mark.backends
def test_importing_an_energy_costs_no_more_than_keras():
    """Neither keras-hub nor a second backend is loaded for it."""
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
    with open(os.path.join(ROOT, "README.md")) as file:
        readme = file.read()
    assert [n for n in public if n not in readme] == []


def test_every_test_that_the_table_of_faults_names_exists():
    """A test that is renamed would leave a kind of fault without one, unnoticed."""
    with open(os.path.join(ROOT, "tests", "CASES.md")) as file:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", file.read())
    assert len(named) > 80
    for name in {name for name, _ in named}:
        with open(os.path.join(ROOT, "tests", name)) as file:
            nodes = ast.walk(ast.parse(file.read()))
        tests = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
        assert not {test for file, test in named if file == name} - tests, name
