"""Medians, the table, the JSON and the plot."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.kinds import KINDS, Kind

Samples = Mapping[tuple[str, str], Sequence[float]]
"""(workload, subject) -> one value per round. What was not measured is not in it."""
Rows = Sequence[Mapping[str, Any]]


def _ratio(kind: Kind, value: float, native: float | None) -> float | None:
    """How many times better than native; ``None`` where native has no such number (it needs no process)."""
    if not native or not value:
        return None
    return value / native if kind.better == "higher" else native / value


def rows(samples: Samples, natives: Mapping[str, str]) -> list[dict[str, Any]]:
    """One entry per workload and subject, medians over the rounds; *natives*: each one's bare directory."""
    found: list[dict[str, Any]] = []
    for kind in KINDS:
        medians = {
            name: statistics.median(samples[kind.name, name]) for name in natives if (kind.name, name) in samples
        }
        for name, value in medians.items():
            ratio = _ratio(kind, value, medians.get(natives[name]))
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


def table(results: Rows, natives: Mapping[str, str]) -> str:
    """The results for a terminal: a value and, behind it, how many times native's speed that is."""
    by_key = {(row["workload"], row["subject"]): row for row in results}
    lines = [f"{'':25}{'unit':>6}" + "".join(f"{name.removeprefix('fusevol-'):>18}" for name in natives)]
    for kind in KINDS:
        cells = []
        for name, native in natives.items():
            row = by_key.get((kind.name, name))
            if row is None:
                cells.append(f"{'-':>10}{'':8}")
                continue
            ratio = "" if row["ratio_to_native"] is None or name == native else f"({row['ratio_to_native']:.2f})"
            cells.append(f"{_short(row['value']):>10} {ratio:7}")
        lines.append(f"{kind.name:25}{kind.unit:>6}" + "".join(cells).rstrip())
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def plot(results: Rows, natives: Mapping[str, str], title: str, target: Path) -> None:
    """One row per workload, one mark per subject on a logarithmic axis; 1 is the bare directory."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    ratios = {(row["workload"], row["subject"]): row["ratio_to_native"] for row in results if row["ratio_to_native"]}
    compared = [name for name, native in natives.items() if name != native]
    workloads = [kind.name for kind in KINDS if any((kind.name, name) in ratios for name in compared)]
    figure, axes = plt.subplots(figsize=(10, 0.32 * len(workloads) + 2))
    for i, (name, mark) in enumerate(zip(compared, "osD^vXP*<>" * len(compared), strict=False)):
        points = [(ratios[workload, name], y) for y, workload in enumerate(workloads) if (workload, name) in ratios]
        # a little apart, so that equal ones are all seen
        shift = (i - (len(compared) - 1) / 2) * 0.08
        axes.plot([x for x, _ in points], [y + shift for _, y in points], mark, label=name, markersize=6, alpha=0.8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(workloads)), workloads)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=1)
    axes.grid(visible=True, alpha=0.3)
    axes.set_xlabel("times the speed of the bare directory (1 = native, more is better, logarithmic)")
    axes.set_title(title, fontsize=9)
    if compared:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=3)
    figure.savefig(target, dpi=120, bbox_inches="tight")
    plt.close(figure)


def store(results: Rows, natives: Mapping[str, str], title: str, folder: Path) -> None:
    """Write ``latest.json`` and ``latest.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".latest.{os.getpid()}"
    temporary.write_text(json.dumps(list(results), indent=1) + "\n", encoding="utf-8")
    temporary.replace(folder / "latest.json")
    plot(results, natives, title, folder / "latest.png")
