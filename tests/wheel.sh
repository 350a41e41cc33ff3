#!/usr/bin/env bash
# Builds the wheel, checks what it holds, and trains two steps with it in a clean
# environment per backend.
#
#   bash tests/wheel.sh                  # the three backends
#   bash tests/wheel.sh jax              # one of them
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# From a clean copy: setuptools would take up what an earlier build left behind.
cp -r "$root/keras_betakd" "$root"/{pyproject.toml,README.md,LICENSE} "$work"
cd "$work"

python3 -m venv build-env
build-env/bin/pip install --quiet build
build-env/bin/python -m build --wheel --outdir dist . >build.log
wheel=$(echo dist/*.whl)
build-env/bin/python - "$wheel" <<'PYTHON'
import sys
import zipfile

names = zipfile.ZipFile(sys.argv[1]).namelist()
tops = {name.split("/")[0] for name in names}
assert len(tops) == 2 and "keras_betakd" in tops, f"more than the package: {tops}"
assert all(t == "keras_betakd" or t.endswith(".dist-info") for t in tops), tops
assert "keras_betakd/py.typed" in names, "the wheel is not typed"
PYTHON

# Exact: the newest torch pulls a CUDA build of several gigabytes.
echo "torch==2.13.0" >constraints.txt
[ $# -gt 0 ] || set -- jax torch tensorflow
for backend in "$@"; do
    python3 -m venv "env-$backend"
    "env-$backend/bin/pip" install --quiet -c constraints.txt "$wheel[$backend]"
    KERAS_BACKEND=$backend "env-$backend/bin/python" "$root/tests/wheel_fit.py" "$backend"
    rm -r "env-$backend"
done
