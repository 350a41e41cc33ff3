#!/usr/bin/env bash
# The benchmarks of an NVIDIA GPU, in under ten minutes: see gpu.py.
#
#   bash benchmarks/gpu.sh                        makes environments with CUDA builds
#   PYTHON=/my/venv/bin/python bash benchmarks/gpu.sh      uses one that has both backends
#   bash benchmarks/gpu.sh --toy                  tiny sizes, with `python`, on any device
#
# Other options are those of gpu.py.
set -euo pipefail
cd "$(dirname "$0")/.."

# Two environments: the builds of PyTorch and JAX ask for different CUDA libraries.
environment() {
    local folder=".venv-gpu/$1"
    if [ ! -e "$folder/ready" ]; then
        # Chained: bash would go on after a failure where the caller has an `||`.
        python3 -m venv "$folder" &&
            "$folder/bin/python" -m pip install --quiet --editable . "${@:2}" >&2 &&
            touch "$folder/ready" || return 1
    fi
    echo "$folder/bin/python"
}

case " $* " in *" --toy "*) PYTHON="${PYTHON:-python}" ;; esac
if [ -n "${PYTHON:-}" ]; then
    exec "$PYTHON" benchmarks/gpu.py "$@"
fi
# An environment that cannot be made is a failed line; the other backend is measured.
torch=$(environment torch torch liger-kernel) || torch=no-environment
jax=$(environment jax "jax[cuda12]") || jax=no-environment
exec python3 benchmarks/gpu.py --torch "$torch" --jax "$jax" "$@"
