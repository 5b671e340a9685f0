# Sourced by demo.sh and test.sh: one virtual environment in .venv (or $MEDMAE_VENV), reinstalled only when
# pyproject.toml, the interpreter or the wanted extras change.
#
#   ensure_environment EXTRAS    e.g. ensure_environment demo; afterwards $PYTHON is the interpreter to use

say() { printf '\n== %s\n' "$*"; }

_suitable() { # is $1 a Python that medmae supports?
    "$1" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' >/dev/null 2>&1
}

_find_python() {
    local candidate
    for candidate in ${MEDMAE_PYTHON:-} python3.11 python3.12 python3 python; do
        if _suitable "$candidate"; then
            command -v "$candidate"
            return 0
        fi
    done
    echo "medmae needs Python 3.11 or 3.12, and none was found (tried python3.11, python3.12, python3, python)." >&2
    echo "Install one, or name it: MEDMAE_PYTHON=/path/to/python bash $0" >&2
    return 4
}

_hash() { # of what decides the contents of the environment
    "$1" -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read() + sys.argv[2].encode()).hexdigest())' \
        "$REPOSITORY/pyproject.toml" "$REPOSITORY"
}

_stamped() { # does the stamp of extras $1 match?
    [ -x "$PYTHON" ] && [ -f "$VENV/.medmae-$1" ] && [ "$(cat "$VENV/.medmae-$1")" = "$(_hash "$PYTHON")" ]
}

ensure_environment() {
    local extras=$1 base
    REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    VENV=${MEDMAE_VENV:-$REPOSITORY/.venv}
    PYTHON=$VENV/bin/python
    if _stamped "$extras" || _stamped all,dev; then
        say "environment: $VENV is up to date"
        return 0
    fi
    if ! _suitable "$PYTHON"; then
        if [ -e "$VENV" ] && [ ! -f "$VENV/pyvenv.cfg" ]; then
            echo "$VENV is there and is no virtual environment: remove it, or choose another with MEDMAE_VENV" >&2
            return 4
        fi
        base=$(_find_python)
        say "environment: making $VENV with $base"
        "$base" -m venv --clear "$VENV"
    fi
    say "environment: installing medmae[$extras] (minutes, the first time)"
    rm -f "$VENV/.medmae-$extras"
    "$PYTHON" -m pip install -qq --disable-pip-version-check --editable "$REPOSITORY[$extras]"
    _hash "$PYTHON" >"$VENV/.medmae-$extras"
}
