"""What a description says of the process that serves a volume."""

from __future__ import annotations

from typing import Any

import pytest

from agent.cli import serving

STATUS: dict[str, Any] = {
    "pid": 7,
    "mountpoint": "/m",
    "transport": "kernel",
    "io_uring": True,
    "passthrough": True,
    "takeover": True,
    "quota": "none",
    "why_not": {},
    "usage": {"used_bytes": None, "limit_bytes": None},
}

STUCK: dict[str, Any] = {
    "count": 2,
    "oldest": 125.3,
    "requests": [
        {"age": 125.3, "operation": "write", "node": 9, "path": "db/file", "pid": 4711},
        {"age": 31.0, "operation": "statfs", "node": 1, "path": None, "pid": 0},
    ],
}


@pytest.mark.parametrize(
    ("change", "title", "value"),
    [
        ({}, "Server", "pid 7, /m"),
        ({}, "Transport", "kernel over io_uring"),
        ({}, "File Data", "passthrough"),
        ({}, "Limit Kept By", "nobody"),
        ({}, "Takeover", "possible"),
        ({"quota": "ledger"}, "Limit Kept By", "the ledger"),
        ({"quota": "kernel"}, "Limit Kept By", "the backing filesystem"),
        ({"io_uring": False, "why_not": {"io_uring": "N"}}, "Transport", "kernel over /dev/fuse (no io_uring: N)"),
        ({"passthrough": False, "why_not": {"passthrough": "so"}}, "File Data", "by the server (so)"),
        ({"stuck": STUCK}, "Stuck", ("2 requests: the storage does not answer\n"
         "write of db/file, process 4711, 2m5s\nstatfs of node 1, process <unknown>, 31s")),
        ({"takeover": False, "why_not": {"takeover": "so"}}, "Takeover", "not possible (so)"),
    ],
)  # fmt: skip
def test_what_is_in_use_is_said_in_words(change: dict[str, Any], title: str, value: str) -> None:
    """Each with the reason where it is not in use."""
    assert dict(serving.lines(STATUS | change))[title] == value


def test_nothing_is_said_of_what_is_not_stuck() -> None:
    """A volume that answers has no such line."""
    assert "Stuck" not in dict(serving.lines(STATUS | {"stuck": {"count": 0, "oldest": 0.0, "requests": []}}))


def test_a_server_that_does_not_answer() -> None:
    """Its process is known, and why nothing else is."""
    assert list(serving.lines({"pid": 7, "error": "gave no answer"})) == [
        ("Server", "pid 7, <unknown>"),
        ("", "gave no answer"),
    ]


@pytest.mark.parametrize(
    ("server", "capacity", "said"),
    [
        (None, "1Gi", "<unknown>"),
        ({"pid": 7, "error": "x"}, "1Gi", "<unknown>"),
        (STATUS, "1Gi", "not counted: `du` of a mount can tell"),
        (STATUS | {"quota": "ledger", "usage": {"used_bytes": 4096}}, "1Gi", "4Ki of 1Gi"),
        (STATUS | {"quota": "ledger", "usage": {"used_bytes": 0}}, None, "0 of unlimited"),
    ],
)
def test_what_is_used(server: dict[str, Any] | None, capacity: str | None, said: str) -> None:
    """What nobody counts is not made up."""
    assert serving.used(server, capacity) == said
