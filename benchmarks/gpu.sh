#!/usr/bin/env bash
# All that wants a GPU, in one call: the GPU tests, the default job on it, the benchmarks. PYTHON: which one (default
# python3). It needs pytest, PyYAML and tqdm beside torch and h5py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
results=$(mktemp -d)
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1

nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
"$python" -m pytest -q -ra tests/ranks/test_gpu.py
for precision in fp32 tf32 bf16 fp64; do
    echo "=== the default job, $precision"
    "$python" -m hpc_landscape --device cuda --precision "$precision" --output "$results/$precision.h5"
    "$python" -m hpc_landscape info "$results/$precision.h5"
done
echo "=== benchmarks"
"$python" -m benchmarks machine gpu --turns 3 --json "$results/gpu.json"
cat "$results/gpu.json"
