#!/usr/bin/env bash
# Lint, types and tests, with all their set-up. Arguments go to pytest:
#   scripts/test.sh                 what CI runs
#   scripts/test.sh -m slow         the longer proofs
REQUIREMENTS=requirements-dev.txt source "$(dirname "$0")/setup.sh"

ruff check .
ruff format --check .
mypy
python -m pytest "$@"
