"""How much is measured: the full form in less than ten minutes, the quick one in about one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes of the workloads. Times are for two CPUs and six subjects."""

    rounds: int = 5
    files: int = 1500
    """Files of the metadata workloads."""
    data_mib: int = 64
    blocks: int = 8000
    """Of 4 KiB at random places; of 1 MiB a 64th of that."""
    fsyncs: int = 30
    transactions: int = 60
    """Of SQLite."""
    pgbench_seconds: int = 1
    tree: int = 1500
    """Files of the source tree, at most."""
    pass_seconds: float = 0.04
    """Passes over data are repeated until they have taken that long."""
    seconds: float = 560.0
    """A round that would end later is not begun."""


FULL: Final = Plan()
QUICK: Final = replace(
    FULL,
    rounds=1,
    files=300,
    data_mib=16,
    blocks=2000,
    fsyncs=8,
    transactions=15,
    tree=300,
    pass_seconds=0.02,
    seconds=50.0,
)
LISTING: Final = 10_000
"""Files in the directory that the listing workloads read, in both forms."""


def from_environment(environment: dict[str, str]) -> Plan:
    """``BENCH`` is ``full`` (or not set) or ``quick``; ``BENCH_ROUNDS`` and ``BENCH_FILES`` change that form.

    Raises :class:`ValueError` with a sentence.
    """
    form = environment.get("BENCH") or "full"
    if form not in {"full", "quick"}:
        raise ValueError(f"BENCH is {form!r}: it can be quick or full.")
    plan = QUICK if form == "quick" else FULL
    rounds = _number(environment, "BENCH_ROUNDS", plan.rounds)
    return replace(plan, rounds=rounds, files=_number(environment, "BENCH_FILES", plan.files))


def _number(environment: dict[str, str], name: str, default: int) -> int:
    text = environment.get(name) or str(default)
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"{name} is {text!r}: it takes a whole number above 0.")
    return int(text)
