"""Medians, the table, the JSON and the plot."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.workloads import KINDS, Kind

Samples = Mapping[tuple[str, str], Sequence[float]]
"""(workload, subject) -> one value per round."""


def _ratio(kind: Kind, value: float, native: float) -> float | None:
    """How many times better than native; ``None`` where native has no such number (it needs no process)."""
    if not native or not value:
        return None
    return value / native if kind.better == "higher" else native / value


def rows(samples: Samples, subjects: Sequence[str]) -> list[dict[str, Any]]:
    """One entry per workload and subject, medians over the rounds."""
    found: list[dict[str, Any]] = []
    for kind in KINDS:
        medians = {name: statistics.median(samples[kind.name, name]) for name in subjects}
        for name, value in medians.items():
            ratio = _ratio(kind, value, medians["native"])
            found.append(
                {
                    "workload": kind.name,
                    "subject": name,
                    "value": round(value, 3),
                    "unit": kind.unit,
                    "better": kind.better,
                    "ratio_to_native": None if ratio is None else round(ratio, 4),
                }
            )
    return found


def table(results: Sequence[Mapping[str, Any]], subjects: Sequence[str]) -> str:
    """The results for a terminal: a value and, behind it, how many times native's speed that is."""
    lines = [f"{'':26}{'unit':>7}" + "".join(f"{name:>19}" for name in subjects)]
    by_key = {(r["workload"], r["subject"]): r for r in results}
    for kind in KINDS:
        cells = []
        for name in subjects:
            row = by_key[kind.name, name]
            ratio = "" if row["ratio_to_native"] is None or name == "native" else f"({row['ratio_to_native']:.2f}x)"
            cells.append(f"{row['value']:>10.2f} {ratio:>8}")
        lines.append(f"{kind.name:26}{kind.unit:>7}" + "".join(cells))
    return "\n".join(lines)


def plot(results: Sequence[Mapping[str, Any]], subjects: Sequence[str], title: str, target: Path) -> None:
    """One group of bars per workload on a logarithmic axis; 1 is the bare directory."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    compared = [name for name in subjects if name != "native"]
    ratios = {(r["workload"], r["subject"]): r["ratio_to_native"] for r in results if r["ratio_to_native"] is not None}
    workloads = [kind.name for kind in KINDS if all((kind.name, name) in ratios for name in compared)]
    height = 0.8 / len(compared)
    figure, axes = plt.subplots(figsize=(10, 0.55 * len(workloads) + 2))
    for i, name in enumerate(compared):
        values = [ratios[workload, name] for workload in workloads]
        places = [row + (i - (len(compared) - 1) / 2) * height for row in range(len(workloads))]
        # bars grow from 1 in both directions
        bars = axes.barh(places, [v - 1 for v in values], height, left=1, label=name)
        axes.bar_label(bars, [f" {v:.2g} " for v in values], fontsize=7)
    axes.set_xscale("log")
    axes.set_yticks(range(len(workloads)), workloads)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=1)
    axes.margins(x=0.15)
    axes.set_xlabel("times the speed of the bare directory (1 = native, more is better, logarithmic)")
    axes.set_title(title, fontsize=10)
    axes.legend(loc="best")
    figure.tight_layout()
    figure.savefig(target, dpi=120)
    plt.close(figure)


def store(results: Sequence[Mapping[str, Any]], subjects: Sequence[str], title: str, folder: Path) -> None:
    """Write ``latest.json`` and ``latest.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".latest.{os.getpid()}"
    temporary.write_text(json.dumps(list(results), indent=1) + "\n", encoding="utf-8")
    temporary.replace(folder / "latest.json")
    plot(results, subjects, title, folder / "latest.png")


def behind(results: Sequence[Mapping[str, Any]], workloads: Sequence[str]) -> list[str]:
    """The workloads among *workloads* in which fusevol is not ahead of bindfs."""
    by_key = {(r["workload"], r["subject"]): r for r in results}
    slower = []
    for kind in KINDS:
        if kind.name not in workloads or not {(kind.name, "fusevol"), (kind.name, "bindfs")} <= by_key.keys():
            continue
        ours, theirs = by_key[kind.name, "fusevol"]["value"], by_key[kind.name, "bindfs"]["value"]
        if (ours >= theirs) if kind.better == "lower" else (ours <= theirs):
            slower.append(kind.name)
    return slower
