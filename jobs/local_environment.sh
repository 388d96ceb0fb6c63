#!/usr/bin/env bash
# The Python environment on each node's own disk, so that a thousand ranks do not look for the files of PyTorch on a
# shared file system. Once, where the environment was made (a virtual environment, or a folder that conda-pack made):
#
#     local_environment.sh pack /path/to/.venv venv.tar
#
# and in a job's script, in the place of "source .../bin/activate", with the path where this file is:
#
#     trap '/path/to/local_environment.sh remove' EXIT
#     venv=$(/path/to/local_environment.sh unpack /path/to/venv.tar) || exit
#     export PATH=$venv/bin:$PATH VIRTUAL_ENV=$venv
#
# It lies in $SLURM_TMPDIR, else $TMPDIR, else /tmp, and is removed with the job; that of a job that was killed, by the
# next one of the same user that unpacks on that node.
set -euo pipefail

usage() {
    echo "usage: $0 pack ENVIRONMENT FILE.tar | unpack FILE.tar | remove" >&2
    exit 2
}

# On every node of the job, one task each. In a job that is being cancelled none can be started any more.
on_nodes() {
    srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task=1 \
        --mpi=none --input=none "$0" "$@" >&2
}

base=${SLURM_TMPDIR:-${TMPDIR:-/tmp}}
name=landscape_environment-$UID
folder=$base/$name-${SLURM_JOB_ID:-}

# Whatever is left here of this user's jobs that have ended; nothing where Slurm does not answer. What is here is listed
# first, since a job may begin meanwhile; and two that remove the same get in each other's way, which is no matter.
remove_stale() {
    local living other there=("$base/$name"-*)
    living=$(squeue --noheader --me --format=' %A ') || return 0
    for other in "${there[@]}"; do
        if [ -d "$other" ] && [ -O "$other" ] && [[ $living != *" ${other##*-} "* ]]; then rm -rf "$other" || true; fi
    done
}

case ${1:-}-$# in
    pack-3)
        [ -x "$2/bin/python" ] || { echo "$2: no environment, bin/python is not in it" >&2; exit 2; }
        "$2/bin/python" -m compileall -q "$2/lib" >&2 || true  # a file that cannot be compiled is nobody's
        tar -C "$2" -cf "$3" .
        ;;
    unpack-2)
        : "${SLURM_JOB_ID:?unpack is for a script that sbatch runs}"
        [ -r "$2" ] || { echo "$2: cannot be read" >&2; exit 2; }
        on_nodes prepare
        sbcast --force "$2" "$folder/packed.tar"
        on_nodes extract
        echo "$folder"
        ;;
    prepare-1)
        rm -rf "$folder"  # of this very job, before it was requeued
        remove_stale
        mkdir -m 700 "$folder"  # fails where another user has put something
        ;;
    extract-1)
        tar -C "$folder" -xf "$folder/packed.tar"
        rm "$folder/packed.tar"
        ;;
    remove-1)
        [ "${SLURM_JOB_NUM_NODES:-1}" = 1 ] || on_nodes here 2>/dev/null || true
        rm -rf "$folder"
        ;;
    here-1) rm -rf "$folder" ;;
    *) usage ;;
esac
