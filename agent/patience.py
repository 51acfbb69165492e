"""How long is waited for what may hang: the part ``hangs`` of the configuration."""

from __future__ import annotations

from typing import Final, NamedTuple, Self

from fusevol.errors import UsageError

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_LEAST: Final = 0.1
_MOST: Final = 7 * 24 * 3600.0


class Patience(NamedTuple):
    """Times in seconds."""

    give_up: float = 20.0
    """After which a call of the agent's own on a pool, a mount or a path of the host counts as hanging."""
    report: float = 30.0
    """After which a request of a program that has no answer is reported: log, ``describe``, events."""
    abort: float | None = None
    """After which such a request ends its volume's connection, so that programs get errors; ``None`` for never."""

    @classmethod
    def parse(cls, given: object) -> Self:
        """From the configuration's mapping ``giveUpAfter``, ``reportAfter``, ``abortAfter``. Raises UsageError."""
        if given is None:
            return cls()
        if not isinstance(given, dict):
            raise UsageError("In the configuration, hangs must be a mapping such as `abortAfter: 10m`.")
        names = {"giveUpAfter": "give_up", "reportAfter": "report", "abortAfter": "abort"}
        unknown = sorted(str(k) for k in set(given) - set(names))
        if unknown:
            raise UsageError(
                f"In the configuration, hangs has unknown keys: {unknown[0]}; known are {', '.join(names)}."
            )
        found = {names[name]: seconds(f"hangs.{name}", value) for name, value in given.items()}
        for name in ("giveUpAfter", "reportAfter"):
            if found.get(names[name], 0.0) is None:
                raise UsageError(f"In the configuration, hangs.{name} cannot be never: give a time such as 30s.")
        chosen = cls(**found)  # type: ignore[arg-type]  # what may not be None has just been looked at
        if chosen.abort is not None and chosen.abort < chosen.report:
            raise UsageError("In the configuration, hangs.abortAfter is less than reportAfter: give a longer time.")
        return chosen


DEFAULT: Final = Patience()


def seconds(where: str, value: object) -> float | None:
    """A time such as ``30``, ``30s``, ``5m``; ``never`` is ``None``. Raises UsageError."""
    text = str(value).strip().lower()
    if text == "never":
        return None
    unit = next((u for u in _UNITS if text.endswith(u)), "")
    try:
        seconds = float(text.removesuffix(unit)) * _UNITS.get(unit, 1.0)
    except ValueError:
        seconds = -1.0
    if not _LEAST <= seconds <= _MOST:
        raise UsageError(f"In the configuration, {where} is {value!r}: give a time such as 30s, 5m or 1h, or never.")
    return seconds
