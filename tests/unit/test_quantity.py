"""Quantities: the grammar, rounding and canonical form of Kubernetes."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusevol import quantity
from fusevol.errors import InvalidError
from fusevol.quantity import MAX, Quantity

CANONICAL = [
    ("1.5", "1500m", 2),
    ("1.5Gi", "1536Mi", 1610612736),
    ("1024Mi", "1Gi", 1073741824),
    ("0.5Mi", "512Ki", 524288),
    ("1025Ki", "1025Ki", 1049600),
    ("0.05Gi", "53687091200m", 53687092),
    ("100.035Ki", "102435840m", 102436),
    ("1000k", "1M", 1000000),
    ("0.001T", "1G", 1000000000),
    ("5", "5", 5),
    ("1e3", "1e3", 1000),
    (".001e12", "1e9", 1000000000),
    ("0.0005k", "500m", 1),
    ("0Ki", "0", 0),
    ("00", "0", 0),
    # beyond the table of canonical output: rounding, signs, suffixes and the edges of the grammar
    ("1E", "1E", 10**18),
    ("1E3", "1e3", 1000),
    ("1E-3", "1e-3", 1),
    ("1e+3", "1e3", 1000),
    ("0.9n", "1n", 1),
    ("3.001n", "4n", 1),
    ("1n", "1n", 1),
    ("1u", "1u", 1),
    ("100m", "100m", 1),
    ("-9.01", "-9010m", -10),
    ("-1Gi", "-1Gi", -(2**30)),
    ("+1Gi", "1Gi", 2**30),
    ("9Ei", "9223372036854775807", MAX),
    ("7Ei", "7Ei", 7 * 2**60),
    ("1.", "1", 1),
    (".5", "500m", 1),
    (".", "0", 0),
    ("007Mi", "7Mi", 7 * 2**20),
    ("512", "512", 512),
    ("0.5Ki", "512", 512),
    ("1G", "1G", 10**9),
    ("12E", "12E", 12 * 10**18),
    ("1000E", "1000E", 10**21),
    ("1e21", "1e21", 10**21),
    ("1e-400", "1e-9", 1),
    (1073741824, "1073741824", 2**30),
    (1.5, "1500m", 2),
    (0, "0", 0),
]


@pytest.mark.parametrize(("text", "canonical", "value"), CANONICAL)
def test_canonical_form_and_value(text: Any, canonical: str, value: int) -> None:
    """A quantity prints in Kubernetes' canonical form, and its bytes are rounded up."""
    parsed = Quantity.parse(text)

    assert (str(parsed), parsed.value) == (canonical, value)


FORMAT, SUFFIX = "quantities must match the regular expression", "unable to parse quantity's suffix"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1.1.M", FORMAT),
        ("1+1.0M", FORMAT),
        ("0.1mi", SUFFIX),
        ("0.1am", FORMAT),
        ("aoeu", FORMAT),
        (".5i", SUFFIX),
        ("1i", SUFFIX),
        ("-3.01i", SUFFIX),
        ("-3.01e-", SUFFIX),
        (" 1", FORMAT),
        ("1 ", FORMAT),
        ("1K", SUFFIX),
        ("1ki", SUFFIX),
        ("1KB", FORMAT),
        ("1Gb", FORMAT),
        ("10GB", FORMAT),
        ("i", FORMAT),
        ("1Gi ", FORMAT),
        ("1\n", FORMAT),
        ("", FORMAT),
        ("+", FORMAT),
        ("\u0661Gi", FORMAT),
        ("1e", SUFFIX),
        ("1e999999999", "exponent"),
        ("9" * 1001, "too many digits"),
        (10**1001, "too many digits"),
        (True, "not a quantity"),
        (None, "not a quantity"),
        ([], "not a quantity"),
        (float("nan"), FORMAT),
        (float("inf"), FORMAT),
    ],
)
def test_refusals(text: Any, reason: str) -> None:
    """What is no quantity is refused with Kubernetes' reason, in one line."""
    with pytest.raises(InvalidError) as e:
        Quantity.parse(text)

    assert reason in e.value.message
    assert "\n" not in e.value.message


@pytest.mark.parametrize(
    ("text", "proposal"), [("10GB", '"10G" or "10Gi"'), ("10gib", '"10Gi"'), ("1K", '"1k" or "1Ki"'), (" 7 ", '"7"')]
)
def test_proposals(text: str, proposal: str) -> None:
    """A size in the spelling of other tools is refused with the right spelling."""
    with pytest.raises(InvalidError) as e:
        quantity.parse(text)

    assert f"try {proposal}" in e.value.message


def test_bytes_beyond_int64_are_refused() -> None:
    """A decimal quantity is not capped, so that its bytes may be too many; a binary one is capped."""
    with pytest.raises(InvalidError, match="too large"):
        quantity.parse("12E")

    assert quantity.parse("9Ei") == MAX


def test_comparison_is_numeric() -> None:
    """Quantities compare by their number, whatever they were written as."""
    sizes = {Quantity.parse(s) for s in ("1Gi", "1024Mi", "1073741824")}

    assert len(sizes) == 1
    assert Quantity.parse("1G") < Quantity.parse("1Gi")
    assert Quantity.parse("1G") != "1G"


def test_milli_value_rounds_away_from_zero() -> None:
    """Thousandths are rounded as bytes are."""
    assert [Quantity.parse(s).milli_value for s in ("1.0001", "-1.0001", "2")] == [1001, -1001, 2000]


@pytest.mark.parametrize(("count", "text"), [(0, "0"), (512, "512"), (1024, "1Ki"), (1025, "1025"), (2**30, "1Gi")])
def test_format_bytes(count: int, text: str) -> None:
    """Bytes print in canonical BinarySI."""
    assert quantity.format_bytes(count) == text


@given(st.integers(-MAX, MAX))
def test_bytes_survive_printing(count: int) -> None:
    """Any number of bytes is read back as it was."""
    assert quantity.parse(quantity.format_bytes(count)) == count


NUMBERS = st.from_regex(r"\A[+-]?([0-9]{1,12}(\.[0-9]{0,12})?|\.[0-9]{1,12})\Z")
SUFFIXES = st.sampled_from(["", *"numkMGTPE", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei", "e3", "E-7", "e+20"])


@given(NUMBERS, SUFFIXES)
def test_canonical_form_is_stable(number: str, suffix: str) -> None:
    """The canonical form means the same number and is its own canonical form."""
    parsed = Quantity.parse(number + suffix)
    again = Quantity.parse(str(parsed))

    assert (again, str(again)) == (parsed, str(parsed))


@given(NUMBERS.filter(lambda n: not n.startswith("-")), SUFFIXES)
def test_never_less_than_written(number: str, suffix: str) -> None:
    """Rounding never gives less than was asked for, and less than one nano more."""
    parsed = Quantity.parse(number + suffix)
    powers = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
    tens = dict(zip(["n", "u", "m", "", "k", "M", "G", "T", "P", "E"], range(-9, 19, 3), strict=True))
    factor = Fraction(2 ** powers.get(suffix, 0)) if suffix in powers else Fraction(f"1e{tens.get(suffix, suffix[1:])}")
    exact = Fraction(Decimal(number)) * factor
    if suffix in powers:
        exact = min(exact, Fraction(MAX))

    assert exact <= Fraction(parsed.amount) < exact + Fraction("1e-9")
