"""The objects of the lecture notes that fusevol began with, as they were printed there (``demo/seed``)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from fusevol import objects

_HOME = Path(__file__).parents[2] / "demo" / "seed"
NAMES = sorted(path.stem for path in _HOME.glob("*.yaml"))
BAD_NAME = "emptydir-pod"
"""Its Pod has a name that Kubernetes refuses."""
WITH_PROMPT = "volume"
"""There its first line is the command that printed the object, with the shell's prompt; in the file it is a comment."""


def text(name: str) -> str:
    """One block, to the letter."""
    return manifest(name).removeprefix("# ") if name == WITH_PROMPT else manifest(name)


def manifest(name: str) -> str:
    """One block as YAML."""
    return (_HOME / f"{name}.yaml").read_text()


def one(name: str) -> dict[str, Any]:
    """The object of one block."""
    (found,) = objects.load(manifest(name), name)
    return found


def unbound_claim() -> dict[str, Any]:
    """The claim as its user wrote it, before the cluster bound it and wrote the rest."""
    printed = copy.deepcopy(one("claim"))
    for field in ("annotations", "ownerReferences"):
        del printed["metadata"][field]
    del printed["spec"]["volumeName"], printed["status"]
    return printed
