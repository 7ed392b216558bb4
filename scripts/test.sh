#!/usr/bin/env bash
# Lint, types and tests, with all their set-up. Arguments go to pytest:
#   scripts/test.sh                 what CI runs, on at most four cores
#   scripts/test.sh -m slow         the longer proofs
#   scripts/test.sh -m machines     several machines and SLURM, as root
REQUIREMENTS=requirements-dev.txt source "$(dirname "$0")/setup.sh"

ruff check .
ruff format --check .
mypy
if [ $# -eq 0 ]; then
  cores=$(nproc)
  export OMP_NUM_THREADS=1
  set -- -n "$((cores < 4 ? cores : 4))" --no-loadscope-reorder
fi
python -m pytest "$@"
