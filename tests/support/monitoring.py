"""The expressions of manifests/monitoring."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

_ROOT = Path(__file__).parents[2] / "manifests" / "monitoring"


def groups() -> list[dict[str, Any]]:
    """The groups of alerts."""
    found: list[dict[str, Any]] = yaml.safe_load((_ROOT / "prometheusrule.yaml").read_text())["spec"]["groups"]
    return found


def queries() -> list[str]:
    """What the dashboard's panels ask, with Grafana's own words filled in."""
    board = json.loads((_ROOT / "dashboard.json").read_text())
    asked = [t["expr"] for p in board["panels"] for t in p["targets"]]
    return [re.sub(r"\$(node|namespace)\b", ".*", e.replace("$__rate_interval", "5m")) for e in asked]


def metrics() -> set[str]:
    """The names of the agent's metrics that alerts, panels and their variables ask for."""
    board = json.loads((_ROOT / "dashboard.json").read_text())
    texts = [*queries(), *(r["expr"] for g in groups() for r in g["rules"])]
    texts += [v["query"] for v in board["templating"]["list"]]
    return set(re.findall(r"\bfusevol_\w+", " ".join(texts)))
