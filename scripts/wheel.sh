#!/usr/bin/env bash
# Builds the wheel, installs it into a fresh environment outside the tree and runs it there: what users get is the
# wheel, not this directory.
set -euo pipefail
cd "$(dirname "$0")/.."
tree=$PWD
rm -rf dist
.venv/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
wheel=$(echo "$tree"/dist/fusevol-*.whl)

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$(readlink -f .venv/bin/python)" -m venv "$scratch/venv"
"$scratch/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$wheel"
cd "$scratch" # so that nothing can be imported from the tree
"$scratch/venv/bin/fusevol" version --client
"$scratch/venv/bin/fusevol" flexvolume init
"$scratch/venv/bin/python" - "$tree" <<'PY'
import pathlib, sys
import agent, fusevol
tree = pathlib.Path(sys.argv[1])
for package in (fusevol, agent):
    root = pathlib.Path(package.__file__).parent
    expected = {p.relative_to(tree / package.__name__) for p in (tree / package.__name__).rglob("*.py")}
    missing = sorted(str(p) for p in expected if not (root / p).exists())
    if missing or tree in root.parents:
        sys.exit(f"The wheel lacks {', '.join(missing)} of {package.__name__} (imported from {root}).")
PY
printf 'wheel: %s works in a fresh environment\n' "${wheel##*/}"
