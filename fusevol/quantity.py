"""Kubernetes resource quantities: ``10Gi`` <-> bytes, in exact decimal arithmetic.

Grammar, rounding and canonical form are those of ``k8s.io/apimachinery/pkg/api/resource``, quirks included, with two
departures: a value that would print more digits than anybody reads (an exponent beyond a thousand) is refused instead
of filling the memory, and a decimal value of 10^21 or more prints as ``1000E`` where Kubernetes loses its suffix.
"""

from __future__ import annotations

import decimal
import functools
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, Self

from fusevol.errors import InvalidError

__all__ = ["MAX", "Format", "Quantity", "QuantityError", "format_bytes", "parse"]

Format = Literal["BinarySI", "DecimalSI", "DecimalExponent"]

MAX = 2**63 - 1
"""The largest number of bytes that any file, limit or quantity can have (int64)."""

PATTERN = "^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$"
"""What Kubernetes quotes in its message; the grammar itself is stricter."""

_FORMAT_WRONG = f"quantities must match the regular expression '{PATTERN}'"
_NUMERIC = "unable to parse numeric part of quantity"
_SUFFIX = "unable to parse quantity's suffix"

_PRECHECK = re.compile(r"([+-]?)([0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)", re.ASCII)
_NUMBER = re.compile(r"[0-9]*\.?[0-9]*", re.ASCII)
_EXPONENT = re.compile(r"[eE]([+-]?[0-9]+)", re.ASCII)
_BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_DECIMAL_NAMES = {exponent: name for name, exponent in _DECIMAL.items()}
_BINARY_NAMES = {power: name for name, power in _BINARY.items()}

_LONGEST = 1000
"""Characters of a quantity, and the largest exponent: enough for every number that means something."""
_EXACT = decimal.Context(prec=4 * _LONGEST, rounding=decimal.ROUND_UP)  # ROUND_UP: away from zero
_NANO = Decimal("1e-9")


class QuantityError(InvalidError):
    """A text that is no quantity."""

    def __init__(self, shown: str, detail: str) -> None:
        super().__init__(f'"{shown}" is not a quantity: {detail}.')
        self.detail = detail
        """Kubernetes' reason and a proposal, for a message that names the field itself."""


@functools.total_ordering
@dataclass(frozen=True, slots=True, eq=False)
class Quantity:
    """An exact number with the family of suffixes that it prints with. Compares and hashes by the number alone."""

    amount: Decimal
    """The value in units (bytes); never finer than 10^-9."""
    format: Format = "BinarySI"

    @classmethod
    def parse(cls, text: str | float) -> Self:
        """Read a quantity from YAML's string or number. Raises :class:`InvalidError` with Kubernetes' reason."""
        written = _written(text)
        sign, number, suffix = _split(written)
        fmt, factor = _factor(written, suffix)
        # Decimal does not read a lone ".", which Kubernetes reads as 0.
        amount = _EXACT.multiply(_EXACT.create_decimal((number.strip(".") and number) or "0"), factor)
        amount = _EXACT.quantize(amount, _NANO)
        if fmt == "BinarySI" and amount > MAX:
            amount = Decimal(MAX)
        return cls(_EXACT.minus(amount) if sign == "-" else _EXACT.plus(amount), fmt)

    @property
    def value(self) -> int:
        """The number rounded up to an integer, away from zero below zero. May be larger than :data:`MAX`."""
        return int(self.amount.to_integral_value(decimal.ROUND_UP, _EXACT))

    @property
    def milli_value(self) -> int:
        """Thousandths, rounded like :attr:`value`."""
        return int(_EXACT.scaleb(self.amount, 3).to_integral_value(decimal.ROUND_UP, _EXACT))

    def __eq__(self, other: object) -> bool:
        return self.amount == other.amount if isinstance(other, Quantity) else NotImplemented

    def __lt__(self, other: Quantity) -> bool:
        return self.amount < other.amount

    def __hash__(self) -> int:
        return hash(self.amount)

    def __str__(self) -> str:
        """The canonical form: the largest suffix of the family that leaves an integer."""
        if not self.amount:
            return "0"
        if self.format == "BinarySI" and abs(self.amount) >= 1024 and self.amount == self.value:
            mantissa, power = self.value, 0
            while mantissa % 1024 == 0 and power < max(_BINARY_NAMES):
                mantissa, power = mantissa // 1024, power + 1
            return f"{mantissa}{_BINARY_NAMES.get(power, '')}"
        return self._decimal()

    def _decimal(self) -> str:
        exponent = -9
        mantissa = int(_EXACT.scaleb(self.amount, 9))
        highest = max(_DECIMAL_NAMES) if self.format != "DecimalExponent" else 2 * _LONGEST
        while mantissa % 1000 == 0 and exponent < highest:
            mantissa, exponent = mantissa // 1000, exponent + 3
        if self.format == "DecimalExponent":
            return f"{mantissa}e{exponent}" if exponent else str(mantissa)
        return f"{mantissa}{_DECIMAL_NAMES[exponent]}"


def parse(text: str | float) -> int:
    """Bytes that a quantity says, rounded up (away from zero for a negative one).

    Raises :class:`InvalidError`: a sentence with Kubernetes' reason, or that the number is beyond int64.
    """
    value = Quantity.parse(text).value
    if abs(value) > MAX:
        raise InvalidError(
            f'"{_shown(text)}" is too large for a size in bytes: it must be at most {MAX} (just below 8Ei).'
        )
    return value


def format_bytes(count: int) -> str:
    """*count* bytes in canonical BinarySI: ``1Gi``; ``1025`` for what no binary suffix divides."""
    return str(Quantity(Decimal(count), "BinarySI"))


def _written(text: str | float) -> str:
    # bool is an int to Python and never a size to a person
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        raise QuantityError(_shown(text), "write a number with a unit, such as 10Gi")
    if isinstance(text, int) and abs(text) >= 1 << (3 * _LONGEST):
        raise QuantityError("...", f"it has too many digits, write at most {_LONGEST} characters")
    # repr of a float is the shortest text that means it, thus what was written
    written = text if isinstance(text, str) else repr(text)
    if len(written) > _LONGEST:
        raise QuantityError(_shown(written), f"it has too many digits, write at most {_LONGEST} characters")
    return written


def _split(written: str) -> tuple[str, str, str]:
    match = _PRECHECK.fullmatch(written)
    if match is None or not _NUMBER.fullmatch(match[2]):
        raise _refusal(written, _FORMAT_WRONG)
    return match[1], match[2], match[3]


def _factor(written: str, suffix: str) -> tuple[Format, Decimal]:
    if suffix in _BINARY:
        return "BinarySI", Decimal(1024 ** _BINARY[suffix])
    if suffix in _DECIMAL:
        return "DecimalSI", Decimal(10) ** _DECIMAL[suffix]
    exponent = _EXPONENT.fullmatch(suffix)
    if exponent is None:
        raise _refusal(written, _SUFFIX)
    power = int(exponent[1])
    if abs(power) > _LONGEST:
        raise _refusal(written, f"{_NUMERIC} (the exponent is beyond {_LONGEST})")
    return "DecimalExponent", _EXACT.scaleb(Decimal(1), power)


def _refusal(written: str, reason: str) -> QuantityError:
    better = _proposal(written)
    hint = f"try {better}" if better else "write a number with a unit, such as 10Gi"
    return QuantityError(_shown(written), f"{reason}; {hint}")


def _proposal(written: str) -> str:
    """What was probably meant: ``10GB`` -> ``"10G" or "10Gi"``."""
    match = re.fullmatch(
        r"\s*\+?([0-9]+\.?[0-9]*|\.[0-9]+)\s*([kmgtpe])?i?(b|byte|bytes)?\s*", written, re.IGNORECASE | re.ASCII
    )
    if match is None:
        return ""
    number, unit = match[1], (match[2] or "").upper()
    if not unit:
        return f'"{number}"'
    return (
        f'"{number}{unit}i"' if "i" in written.lower() else f'"{number}{unit.replace("K", "k")}" or "{number}{unit}i"'
    )


def _shown(text: object) -> str:
    """*text* for a message of one line."""
    shown = str(text).encode("unicode_escape").decode() if isinstance(text, str) else repr(text)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
