"""A place in an object that is being validated, and what is found wrong there.

Objects come as parsed YAML: any field may hold a value of any type. A :class:`Field` carries its path and reports a
wrong type where it is read, so that a validation reads like Kubernetes' and cannot crash. Absent and null are the same.
The forms of the messages are those of ``k8s.io/apimachinery/pkg/util/validation/field``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Self

from fusevol.errors import InvalidError
from fusevol.quantity import MAX, Quantity, QuantityError

_LONGEST_SHOWN = 300


class Problems:
    """All that is wrong with one object."""

    def __init__(self) -> None:
        self._found: dict[str, None] = {}

    def add(self, text: str) -> None:
        """Note a problem, once."""
        self._found[text] = None

    def __len__(self) -> int:
        return len(self._found)

    def refuse(self, kind: str, name: object) -> None:
        """Raise :class:`InvalidError` with all problems, in the form of kubectl, if there are any."""
        if self._found:
            found = list(self._found)
            told = found[0] if len(found) == 1 else f"[{', '.join(found)}]"
            shown = name if isinstance(name, str) else ""
            raise InvalidError(f"{kind} {quoted(shown)} is invalid: {told}")


class Field:
    """A value of an object with its path, such as ``spec.volumes[0].hostPath``."""

    __slots__ = ("path", "problems", "value")

    def __init__(self, path: str, value: Any, problems: Problems) -> None:
        self.path = path
        self.value = value
        self.problems = problems

    def __repr__(self) -> str:
        return f"<Field {self.path}={self.value!r}>"

    def __bool__(self) -> bool:
        """Whether there is a value at all (an empty one counts)."""
        return self.value is not None

    # -- going down

    def child(self, name: str) -> Self:
        """The field *name* of a mapping; one without a value if there is none."""
        value = self.value.get(name) if isinstance(self.value, dict) else None
        return type(self)(f"{self.path}.{name}" if self.path else name, value, self.problems)

    def at(self, *names: str) -> Self:
        """The field at the end of a chain of names."""
        found = self
        for name in names:
            found = found.child(name)
        return found

    def entry(self, key: str) -> Self:
        """The value of a mapping with free keys: ``spec.capacity[storage]``."""
        value = self.value.get(key) if isinstance(self.value, dict) else None
        return type(self)(f"{self.path}[{key}]", value, self.problems)

    def mapping(self) -> dict[str, Any]:
        """The value as a mapping; empty if it is absent or (reported) something else."""
        if self.value is None:
            return {}
        if not isinstance(self.value, dict):
            self.invalid("must be a mapping")
            return {}
        return self.value

    def items(self) -> list[Self]:
        """The elements of a list; empty if it is absent or (reported) something else."""
        if self.value is None:
            return []
        if not isinstance(self.value, list):
            self.invalid("must be a list")
            return []
        return [type(self)(f"{self.path}[{i}]", v, self.problems) for i, v in enumerate(self.value)]

    # -- reading

    def text(self) -> str:
        """The value as a string; empty if it is absent or (reported) something else."""
        if self.value is None:
            return ""
        if not isinstance(self.value, str):
            self.invalid(
                "must be a string (put it in quotes)" if isinstance(self.value, int | float) else "must be a string"
            )
            return ""
        return self.value

    def texts(self) -> list[str]:
        """The strings of a list."""
        return [item.text() for item in self.items() if item.present()]

    def flag(self) -> bool:
        """The value as a boolean; False if it is absent or (reported) something else."""
        if self.value is not None and not isinstance(self.value, bool):
            self.invalid("must be true or false")
        return self.value is True

    def integer(self, lowest: int, highest: int) -> int | None:
        """The value as an integer in a range."""
        if self.value is None:
            return None
        if isinstance(self.value, bool) or not isinstance(self.value, int):
            self.invalid("must be an integer")
            return None
        if not lowest <= self.value <= highest:
            self.invalid(f"must be between {lowest} and {highest}, inclusive")
            return None
        return self.value

    def quantity(self) -> Quantity | None:
        """The value as a quantity in the range of int64."""
        if self.value is None:
            return None
        try:
            found = Quantity.parse(self.value)
        except QuantityError as e:
            self.invalid(e.detail)
            return None
        # A binary quantity is capped when it is parsed, so that the largest value stands for all beyond it.
        if abs(found.value) >= MAX:
            self.invalid("must be less than 8Ei (2^63 - 1 bytes)")
            return None
        return found

    def present(self) -> bool:
        """Whether an element of a list is there (null is reported)."""
        if self.value is None:
            self.invalid("must not be null")
        return self.value is not None

    # -- common rules

    def needed(self, detail: str = "") -> str:
        """The value as a string that must not be empty."""
        text = self.text()
        if not text and (self.value is None or isinstance(self.value, str)):
            self.required(detail)
        return text

    def one_of(self, supported: Iterable[str]) -> str:
        """The value as a string out of *supported*; absent is fine."""
        text = self.text()
        if isinstance(self.value, str) and text not in supported:
            self.unsupported(supported)
        return text

    # -- reporting

    def required(self, detail: str = "") -> None:
        """Report that the value is missing."""
        self._report("Required value", detail)

    def invalid(self, detail: str) -> None:
        """Report that the value breaks a rule."""
        self._report(f"Invalid value: {shown(self.value)}", detail)

    def unsupported(self, supported: Iterable[str]) -> None:
        """Report that the value is none of *supported*."""
        listed = ", ".join(quoted(s) for s in sorted(supported))
        self._report(f"Unsupported value: {shown(self.value)}", f"supported values: {listed}")

    def duplicate(self) -> None:
        """Report that the value was there before."""
        self._report(f"Duplicate value: {shown(self.value)}")

    def missing(self) -> None:
        """Report that what the value names does not exist."""
        self._report(f"Not found: {shown(self.value)}")

    def forbidden(self, detail: str) -> None:
        """Report that there may be no value, or no change, here."""
        self._report("Forbidden", detail)

    def too_long(self, limit: int) -> None:
        """Report that the value is larger than *limit* bytes."""
        self._report("Too long", f"may not be more than {limit} bytes")

    def too_many(self, count: int, limit: int) -> None:
        """Report that there are *count* elements instead of at most *limit*."""
        self._report(f"Too many: {count}", f"must have at most {limit} items")

    def _report(self, what: str, detail: str = "") -> None:
        where = f"{_one_line(self.path)}: " if self.path else ""
        self.problems.add(f"{where}{what}{': ' if detail else ''}{detail}")


def quoted(text: str) -> str:
    """*text* in double quotes on one line, as Go's ``%q`` prints it."""
    return _one_line(json.dumps(_shortened(text), ensure_ascii=False))


def shown(value: object) -> str:
    """A value for a message: numbers bare, strings quoted, the rest as JSON."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return quoted(value)
    try:
        return _one_line(json.dumps(value, ensure_ascii=False, default=str))
    except ValueError:  # Python prints no integer of more than 4300 digits
        return "..."


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _one_line(text: str) -> str:
    """*text* with all that would break a line, or cannot be printed, escaped."""
    return _shortened("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text))
