#!/usr/bin/env bash
# Builds the documentation into site/. A broken link or anchor, or a docstring that
# does not fit its signature, ends it with an error.
#
#   bash docs/build.sh            # build it
#   bash docs/build.sh serve      # look at it while it is written
#
# Only the tools are installed: they read the sources without importing them.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -d .venv-docs ] || python3 -m venv .venv-docs
python=.venv-docs/bin/python
"$python" -c '
import tomllib
with open("pyproject.toml", "rb") as file:
    extras = tomllib.load(file)["project"]["optional-dependencies"]
print(*extras["docs"], sep="\n")
' > .venv-docs/requirements.txt
"$python" -m pip install --quiet --requirement .venv-docs/requirements.txt
if [ "${1:-build}" = serve ]; then
    exec "$python" -m mkdocs serve
fi
"$python" -m mkdocs build --strict --clean
