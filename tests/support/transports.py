"""The ways in which requests reach a volume server, by name, for tests that run on each of them."""

from __future__ import annotations

import os
from typing import Any

import pytest

from fusevol.transport.kernel import parameter
from tests.support.servers import VolumeServer


def fields(name: str) -> dict[str, Any]:
    """The fields of a MountSpec for ``kernel`` (/dev/fuse), ``io_uring`` or ``pyfuse3``.

    io_uring is switched on for the machine until the end of the test (``tests/conftest.py``); a mount that exists is
    not changed by that.
    """
    if name == "pyfuse3":
        return {"transport": "pyfuse3"}
    if name == "io_uring" and not parameter.enabled():
        if not parameter.PARAMETER.exists():
            pytest.skip("this kernel has no FUSE over io_uring (Linux 6.14)")
        parameter.PARAMETER.write_text("Y")
    return {"transport": "kernel", "io_uring": name == "io_uring"}


def passthrough() -> bool:
    """Whether this kernel reads and writes backing files by itself (Linux 6.9)."""
    return tuple(int(n) for n in os.uname().release.split(".")[:2]) >= (6, 9)


def check(server: VolumeServer, name: str) -> None:
    """Assert that *server* is reached in the way *name*."""
    status = server.call("status")
    assert status["transport"] == ("pyfuse3" if name == "pyfuse3" else "kernel")
    assert status["io_uring"] == (name == "io_uring"), status["why_not"]
