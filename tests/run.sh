#!/usr/bin/env bash
# Installs the project with all three backends into .venv-test and runs everything
# that must hold: lint, the docstrings' examples, and the suite once per backend.
#
#   bash tests/run.sh                    # all of it
#   bash tests/run.sh -k beta            # arguments go to pytest
set -euo pipefail
cd "$(dirname "$0")/.."

[ -d .venv-test ] || python3 -m venv .venv-test
python=.venv-test/bin/python
"$python" -m pip install --quiet --upgrade pip
"$python" -m pip install --quiet -e ".[dev]"
"$python" -m ruff check .
"$python" -m ruff format --check .

# Three processes at a time: much of a run is waiting for one core to compile. PyTorch's
# threads would wait for each other by spinning, and starve the rest.
export OMP_NUM_THREADS=1
logs=$(mktemp -d)
pids=()
backends=(jax torch tensorflow)
for backend in "${backends[@]}"; do
    KERAS_BACKEND=$backend "$python" -m pytest --doctest-modules keras_betakd tests \
        --disable-warnings --durations=25 "$@" \
        >"$logs/$backend" 2>&1 &
    pids+=($!)
done
status=0
for i in "${!pids[@]}"; do
    code=0
    wait "${pids[$i]}" || code=$?
    printf '\n== %s: exit status %s ==\n' "${backends[$i]}" "$code"
    tail -n 90 "$logs/${backends[$i]}"
    [ "$code" -eq 0 ] || status=1
done
rm -r "$logs"
exit "$status"
