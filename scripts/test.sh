#!/usr/bin/env bash
# Everything that must hold before a change is accepted: style, types, import rules and all tests, slow ones too.
# Usage: bash scripts/test.sh [pytest arguments]        MEDMAE_VENV and MEDMAE_PYTHON choose the environment.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
ensure_environment all,dev
cd "$REPOSITORY"

say "style (ruff check)"
"$PYTHON" -m ruff check .

say "format (ruff format --check)"
"$PYTHON" -m ruff format --check .

say "types (mypy)"
"$PYTHON" -m mypy

say "import rules (lint-imports)"
"$VENV/bin/lint-imports"

say "tests (pytest)"
"$PYTHON" -m pytest --durations=15 "$@"

say "all passed"
