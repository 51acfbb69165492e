"""The table of ``fusevol top``."""

from __future__ import annotations

import re
from typing import Any

import pytest

from agent.cli import top

SERVERS: list[dict[str, Any]] = [
    {"mount_id": "a", "usage": {"used_bytes": 2**20, "used_inodes": 3, "limit_bytes": 2**30}},
    {"mount_id": "b", "usage": {"used_bytes": 2**19, "used_inodes": 1, "limit_bytes": 2**20}},
    {"mount_id": "c", "usage": {"used_bytes": None, "limit_bytes": None}},
    {"mount_id": "d", "error": "it does not answer"},
]
MOUNTS: list[dict[str, Any]] = [
    {"mountId": "a", "namespace": "shop", "claim": "data", "target": "/x"},
    {"mountId": "a", "namespace": "shop", "claim": "data", "target": "/y"},
    {"mountId": "b", "kind": "emptyDir", "pod": "uid-1", "target": "/z"},
    {"mountId": "c", "kind": "emptyDir", "target": "/w"},
]


def test_rows() -> None:
    """Who uses a volume, how much, of how much, and how fast that changes; what nobody knows is said so."""
    text = top.table(SERVERS, MOUNTS, {"a": 0, "b": 2**20}, 2.0)
    rows = [re.split(r" {2,}", line) for line in text.splitlines()]

    assert rows == [
        ["VOLUME", "USER", "USED", "LIMIT", "USE%", "INODES", "CHANGE/S"],
        ["a", "shop/data", "1Mi", "1Gi", "0%", "3", "+512Ki"],
        ["b", "emptyDir of uid-1", "512Ki", "1Mi", "50%", "1", "-256Ki"],
        ["c", "/w", "<unknown>", "<none>", "<none>", "<unknown>", "<unknown>"],
        ["d", "<none>", "<unknown>", "<none>", "<none>", "<unknown>", "<unknown>"],
    ]


@pytest.mark.parametrize(("sort", "first"), [("used", "a"), ("share", "b"), ("name", "a")])
def test_order(sort: str, first: str) -> None:
    """The most used, the fullest, or by name."""
    assert top.table(SERVERS, MOUNTS, {}, 1.0, sort).splitlines()[1].startswith(first)
