#!/usr/bin/env bash
# All that wants a GPU, in one call of less than ten minutes: the GPU tests and jobs in every precision at the same time,
# then the benchmarks, alone. No step takes longer than it is given, and one that fails keeps none of the others.
#
# PYTHON: which one (default python3); it needs pytest, PyYAML and tqdm beside torch and h5py. RESULTS: where the
# numbers and the log are kept (default: nowhere). BUDGET: seconds for all of it (default 570). DEVICE=cpu: a rehearsal,
# of next to nothing, where there is no GPU.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
python=${PYTHON:-python3} device=${DEVICE:-cuda} budget=${BUDGET:-570}
results=${RESULTS:-$(mktemp -d)}
files=$(mktemp -d)
mkdir -p "$results"
exec > >(tee "$results/log.txt") 2>&1
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 TORCHINDUCTOR_FX_GRAPH_CACHE=1
tiny=() many=(--x=-1:1:9 --y=-1:1:9) few=(--x=-1:1:3 --y=none)
[ "$device" = cpu ] && tiny=(--tiny) many=(--x=-1:1:2 --y=none "--problem.epochs=1") few=("${many[@]}")
failed=0 names=() pids=()

# step SECONDS COMMAND...: so long at most, and no longer than what is left of the budget.
step() {
    local limit=$1 left=$((budget - SECONDS)) start=$SECONDS code
    shift
    printf '\n=== %s\n' "$*"
    [ "$limit" -le "$left" ] || limit=$left
    if [ "$limit" -lt 5 ]; then
        echo "=== LEFT OUT: no time for it"
        return 1
    fi
    timeout -k 5 "$limit" "$@"
    code=$?
    case $code in
        0) ;;
        124 | 137) echo "=== STOPPED after $limit s: $*" ;;
        *) echo "=== FAILED with $code: $*" ;;
    esac
    echo "=== $((SECONDS - start)) s"
    return "$code"
}

# beside NAME SECONDS COMMAND...: at the same time as others, with one thread, since more would wait for each other;
# beside_all waits for them and shows what they have said.
beside() {
    (OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=4 step "${@:2}") >"$files/$1.log" 2>&1 &
    names+=("$1") pids+=($!)
}
beside_all() {
    local i
    for i in "${!names[@]}"; do
        wait "${pids[$i]}" || failed=1
        cat "$files/${names[$i]}.log"
    done
}

job=("$python" -m hpc_landscape --device "$device" --plot=false)
tests=("$python" -m pytest -v -rfEX --durations=5 -p no:cacheprovider tests/ranks/test_gpu.py)
measure() { step "$1" "$python" -m benchmarks.gpu "${@:3}" --device "$device" "${tiny[@]}" --json "$results/$2.json" || failed=1; }

[ "$device" = cpu ] || step 20 nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader || failed=1
beside tests 170 "${tests[@]}" -k "$device and not compiled"
beside compiled 170 "${tests[@]}" -k "$device and compiled"
precisions=(fp32 bf16 fp64)
[ "$device" = cpu ] || precisions+=(tf32)
for precision in "${precisions[@]}"; do
    beside "$precision" 120 "${job[@]}" "${many[@]}" --precision "$precision" --output "$files/$precision.h5"
done
beside graphs 170 "${job[@]}" "${few[@]}" --compile reduce-overhead --output "$files/graphs.h5"
beside curvature 120 "${job[@]}" "${few[@]}" --metrics loss,gradient_norm,curvature --output "$files/curvature.h5"
beside_all
for precision in "${precisions[@]}"; do
    step 20 "$python" -m hpc_landscape info "$files/$precision.h5" || failed=1
done
step 60 "$python" -m benchmarks machine --json "$results/machine.json" || failed=1
measure 60 ceilings ceilings layers
forms=("bf16 compiled" bf16)
[ "$device" = cpu ] && forms=(bf16)  # a compiler takes minutes there
measure 170 large large --forms "$(IFS=, && echo "${forms[*]}")"
measure 100 small small
measure 60 batches batches
others=(tf32 fp32 "fp32 contiguous" "bf16 max-autotune" "bf16 CUDA graphs" "tf32 compiled" "fp32 compiled")
[ "$device" = cpu ] && others=(fp32)
measure 200 others large --forms "$(IFS=, && echo "${others[*]}")"
[ "$device" = cpu ] || step 90 "${job[@]}" --tune --output "$files/tuned.h5" || failed=1
printf '\n=== targets\n'
"$python" -m benchmarks.gpu --targets "$results"/{large,small,others}.json || failed=1
echo "=== $SECONDS s in all"
exit "$failed"
