"""``--sort-by``."""

from __future__ import annotations

from typing import Any

import pytest

from agent.cli import sorting
from fusevol.errors import UsageError

Obj = dict[str, Any]


@pytest.mark.parametrize(
    ("values", "ordered"),
    [
        (["10Gi", "9Gi", "1500Mi", None], [None, "1500Mi", "9Gi", "10Gi"]),
        (["pod-10", "pod-9", "app"], ["app", "pod-9", "pod-10"]),
        ([True, 3, "x", 2.5], [True, 2.5, 3, "x"]),
        (["2026-01-10T00:00:00Z", "2025-12-31T00:00:00Z"], ["2025-12-31T00:00:00Z", "2026-01-10T00:00:00Z"]),
    ],
)
def test_order(values: list[Any], ordered: list[Any]) -> None:
    """Sizes are compared as sizes, numbers in names as numbers, and what has no value comes first."""
    objs: list[Obj] = [{"a": {"b": value}} for value in values]

    assert [o["a"]["b"] for o in sorting.order(objs, ".a.b")] == ordered


def test_a_field_that_nobody_has() -> None:
    """A misspelt field is told instead of leaving the order as it is."""
    with pytest.raises(UsageError, match="No object has"):
        sorting.order([{"a": 1}], ".b")
