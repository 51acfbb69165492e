#!/usr/bin/env bash
# The checks that run no code of ours.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin
$bin/ruff format --check .
$bin/ruff check .
$bin/mypy
$bin/lint-imports
for script in scripts/*.sh .ci/run; do bash -n "$script"; done
