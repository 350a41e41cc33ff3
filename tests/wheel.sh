#!/usr/bin/env bash
# Builds the source distribution and, out of it, the wheel; checks what both hold; and
# trains with the wheel in a clean environment per backend.
#
#   bash tests/wheel.sh                  # the three backends
#   bash tests/wheel.sh jax              # one of them
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# From a clean copy: setuptools would take up what an earlier build left behind.
cp -r "$root"/{keras_betakd,benchmarks,docs,examples,tests} "$work"
cp "$root"/{pyproject.toml,MANIFEST.in,README.md,LICENSE} "$work"
cp "$root"/{CHANGELOG.md,CITATION.cff,CONTRIBUTING.md} "$work"
cd "$work"

python3 -m venv build-env
build-env/bin/pip install --quiet build twine
build-env/bin/python -m build --outdir dist . >build.log
build-env/bin/python -m twine check --strict dist/*
wheel=$(echo dist/*.whl)
build-env/bin/python - "$wheel" dist/*.tar.gz <<'PYTHON'
import sys
import tarfile
import zipfile

names = zipfile.ZipFile(sys.argv[1]).namelist()
tops = {name.split("/")[0] for name in names}
assert len(tops) == 2 and "keras_betakd" in tops, f"more than the package: {tops}"
assert all(t == "keras_betakd" or t.endswith(".dist-info") for t in tops), tops
assert "keras_betakd/py.typed" in names, "the wheel is not typed"

sources = {name.partition("/")[2] for name in tarfile.open(sys.argv[2]).getnames()}
needed = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "docs/compatibility.md"}
needed |= {"tests/conftest.py", "tests/golden/energies.npz", "keras_betakd/py.typed"}
needed |= {"examples/scienceqa.py", "benchmarks/study/runs.jsonl"}
assert needed <= sources, f"not in the source distribution: {needed - sources}"
assert not any("__pycache__" in name for name in sources), "compiled files"
PYTHON

# Exact: the newest torch pulls a CUDA build of several gigabytes.
echo "torch==2.13.0" >constraints.txt
[ $# -gt 0 ] || set -- jax torch tensorflow
for backend in "$@"; do
    python3 -m venv "env-$backend"
    # Not compiled: most of the modules are never imported.
    "env-$backend/bin/pip" install --quiet --no-compile -c constraints.txt \
        "$wheel[$backend]"
    KERAS_BACKEND=$backend "env-$backend/bin/python" "$root/tests/wheel_fit.py" "$backend"
    rm -r "env-$backend"
done
