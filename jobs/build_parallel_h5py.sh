#!/usr/bin/env bash
# Builds h5py with MPI into the active virtual environment, so that every rank writes its own points
# (hpc_landscape --writer parallel). Takes two to three minutes on two cores, twice that where mpi4py is compiled too.
#
# On a cluster: load the modules of the compiler, an MPI and an HDF5 that was built with that MPI; make and activate a
# virtual environment; then
#
#     HDF5_DIR=/where/that/hdf5/is jobs/build_parallel_h5py.sh
#
# Many sites set HDF5_DIR, or a name like HDF5_ROOT or EBROOTHDF5, with the module. CC is the MPI's compiler wrapper,
# mpicc if you do not set it (cc on a Cray). PIP_CONSTRAINT=constraints.txt takes the versions that CI tests.
#
# On Debian or Ubuntu, as root, this installs Open MPI and its HDF5 first:
#
#     jobs/build_parallel_h5py.sh --debian
#
# Install whatever else depends on h5py (h5netcdf, hpc_landscape itself) after this, or pip takes the serial h5py first.
set -euo pipefail

if [ "${1:-}" = --debian ]; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq gcc libc6-dev openmpi-bin libopenmpi-dev libhdf5-openmpi-dev >/dev/null
    HDF5_DIR=/usr/lib/$(gcc -print-multiarch)/hdf5/openmpi
elif [ $# -gt 0 ]; then
    echo "usage: [CC=mpicc] HDF5_DIR=... $0 | $0 --debian" >&2
    exit 2
fi
export CC="${CC:-mpicc}"
export HDF5_DIR="${HDF5_DIR:?set it to the HDF5 that was built with your MPI: the folder that has include and lib}"
export HDF5_MPI=ON

python -c 'import sys; sys.exit(sys.prefix == sys.base_prefix and "activate a virtual environment first")'
command -v "$CC" >/dev/null || { echo "no compiler $CC: load the MPI module, or set CC" >&2; exit 2; }

# The wheel of mpi4py finds Debian's MPI by itself; on a cluster it has to be compiled for the one that is loaded.
if [ "${1:-}" = --debian ]; then
    python -m pip install mpi4py
else
    python -m pip install --force-reinstall --no-deps --no-cache-dir --no-binary=mpi4py mpi4py
fi

# Without build isolation: inside it pip compiles an old mpi4py, in over 10 minutes and with 20 GB of memory.
# Without the cache, which may hold an h5py that was built for another MPI.
python -m pip install cython pkgconfig 'setuptools>=77' wheel numpy
python -m pip uninstall -y h5py
several=$(mktemp)
printf '[build_ext]\nparallel = 4\n' >"$several"
DIST_EXTRA_CONFIG=$several python -m pip install --no-cache-dir --no-build-isolation --no-binary=h5py h5py
rm "$several"

python - <<'END'
import sys

import h5py
import mpi4py

mpi4py.rc.initialize = False  # a login node may not let a program start MPI
from mpi4py import MPI

library = MPI.Get_library_version().strip("\0\n ").splitlines()[0]
print(f"h5py {h5py.__version__}, HDF5 {h5py.version.hdf5_version}, {library}")
sys.exit(None if h5py.get_config().mpi else "h5py was built, but without MPI: is HDF5_DIR an HDF5 with MPI?")
END
