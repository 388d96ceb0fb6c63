#!/usr/bin/env bash
# All that wants a GPU, in one call: the GPU tests, the default job on it, the benchmarks. Goes on where one fails, and
# fails at the end. PYTHON: which one (default python3); it needs pytest, PyYAML and tqdm beside torch and h5py. RESULTS:
# where to keep what was measured (default: nowhere).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
python=${PYTHON:-python3}
results=${RESULTS:-$(mktemp -d)}
files=$(mktemp -d)
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
failed=0

step() {
    printf '\n=== %s\n' "$*"
    local start=$SECONDS
    "$@" || { failed=1; echo "=== FAILED: $*"; }
    echo "=== $((SECONDS - start)) s"
}

step nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
step "$python" -m pytest -q -ra --durations=5 tests/ranks/test_gpu.py
job=("$python" -m hpc_landscape --device cuda --plot=false)
for precision in fp32 tf32 bf16 fp64; do
    step "${job[@]}" --precision "$precision" --output "$files/$precision.h5"
    step "$python" -m hpc_landscape info "$files/$precision.h5"
done
step "${job[@]}" --x=-1:1:5 --y=-1:1:5 --compile reduce-overhead --output "$files/graphs.h5"
step "${job[@]}" --tune --output "$files/tuned.h5"
step "${job[@]}" --x=-1:1:3 --y=none --metrics loss,curvature --output "$files/curvature.h5"
step "$python" -m benchmarks machine gpu --turns 2 --json "$results/gpu.json"
exit "$failed"
