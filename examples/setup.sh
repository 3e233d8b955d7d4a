#!/usr/bin/env bash
# Finds or makes a Python environment with the project's pinned dependencies, and sets PYTHON to its interpreter.
# Source it:  EXTRAS=dev source examples/setup.sh
# Needs: Python 3.10 to 3.12 and a package index that pip reaches (only where something is missing).
# Prints: one line that says which environment serves.
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
EXTRAS="${EXTRAS:-}"

_satisfied() {  # does this interpreter already have all that setup.py asks for?
    "$1" - "$ROOT" "$EXTRAS" <<'PY' 2>/dev/null
import ast, pathlib, sys
from importlib import metadata
from packaging.requirements import Requirement
if not (3, 10) <= sys.version_info[:2] <= (3, 12):
    sys.exit(1)
tree = ast.parse((pathlib.Path(sys.argv[1]) / "setup.py").read_text())
wanted = next(ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "DEPENDENCIES")
call = next(n.value for n in tree.body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call))
extras = next(ast.literal_eval(k.value) for k in call.keywords if k.arg == "extras_require")
for text in wanted + extras.get(sys.argv[2], []):
    need = Requirement(text)
    if need.marker and not need.marker.evaluate():
        continue
    if not need.specifier.contains(metadata.version(need.name), prereleases=True):
        sys.exit(1)
PY
}

_find_python() {  # the first interpreter of a supported version that really runs
    local name
    for name in "${PYTHON:-}" python3 python python3.11 python3.12 python3.10; do
        [ -n "$name" ] || continue
        "$name" -c 'import sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1 || continue
        command -v "$name" && return 0
    done
    return 1
}

_setup() {
    local base extra
    base="$(_find_python)" || {
        echo "error: no Python 3.10 to 3.12 with the venv module found; install one, or set PYTHON to it" >&2
        return 2
    }
    if _satisfied "$base"; then
        PYTHON="$base"
        echo "environment: $PYTHON has all that is needed"
    else
        PYTHON="$ROOT/.venv/bin/python"
        [ -x "$PYTHON" ] || "$base" -m venv "$ROOT/.venv"
        if _satisfied "$PYTHON"; then
            echo "environment: $PYTHON has all that is needed"
        else
            extra="${EXTRAS:+[$EXTRAS]}"
            echo "environment: installing the pinned dependencies into $ROOT/.venv (once; some minutes)"
            "$PYTHON" -m pip install --quiet --disable-pip-version-check packaging
            "$PYTHON" -m pip install --quiet --disable-pip-version-check -c "$ROOT/constraints.txt" -e "$ROOT$extra"
        fi
    fi
    export PYTHON
    export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
}
_setup
