#!/usr/bin/env bash
# See the main job work, from nothing: installs medmae into .venv and runs the demo.
# Usage: bash scripts/demo.sh [arguments of "medmae demo"]      MEDMAE_VENV and MEDMAE_PYTHON choose the environment.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
ensure_environment demo

say "demo"
"$PYTHON" -m medmae demo "$@"
