#!/usr/bin/env bash
# Installs the project with all three backends into .venv-test and runs everything
# that must hold: lint, the docstrings' examples, all tests on PyTorch, and on JAX and
# TensorFlow those that are marked `backends`.
#
#   bash tests/run.sh                    # all of that
#   bash tests/run.sh -k beta            # arguments go to pytest
#   bash tests/run.sh --everywhere       # all tests on each backend
set -euo pipefail
cd "$(dirname "$0")/.."

[ -d .venv-test ] || python3 -m venv .venv-test
python=.venv-test/bin/python
"$python" -m pip install --quiet --upgrade pip
"$python" -m pip install --quiet -e ".[dev]"
printf '== installed after %s s ==\n' "$SECONDS"
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy

# Four processes at a time: much of a run is waiting for one core to compile. PyTorch's
# threads would wait for each other by spinning, and starve the rest. Its tests, the most,
# run in two parts, so that no core is idle in the end.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# What JAX has compiled is kept for the next run. It is found by the program, JAX's
# version, the flags and the processor; to be rid of it, delete the folder.
export JAX_COMPILATION_CACHE_DIR="$PWD/.venv-test/jax-cache"
TIMEFORMAT='%0R s from start to end, %0U s of a processor'
logs=$(mktemp -d)
pids=()
backends=(jax torch torch tensorflow)
parts=(1/1 1/2 2/2 1/1)
for i in "${!backends[@]}"; do
    { time KERAS_BACKEND=${backends[$i]} "$python" -m pytest \
        --doctest-modules keras_betakd tests --part "${parts[$i]}" \
        --disable-warnings --durations=25 "$@"; } >"$logs/$i" 2>&1 &
    pids+=($!)
done
status=0
for i in "${!pids[@]}"; do
    code=0
    wait "${pids[$i]}" || code=$?
    printf '\n== %s, part %s: exit status %s ==\n' "${backends[$i]}" "${parts[$i]}" "$code"
    tail -n 90 "$logs/$i"
    # 5: no test was chosen, which is an error where none was asked for.
    [ "$code" -eq 0 ] || { [ "$code" -eq 5 ] && [ $# -gt 0 ]; } || status=1
done
rm -r "$logs"
printf '\n== exit status %s after %s s ==\n' "$status" "$SECONDS"
exit "$status"
