"""Pools for tests, closed afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from fusevol.pool import Pool


class OpenPool(Protocol):
    """Opens or creates a pool; see :func:`open_pool`."""

    def __call__(self, path: Path, **options: Any) -> Pool: ...


@pytest.fixture
def open_pool(workdir: Path) -> Iterator[OpenPool]:
    """A factory: ``open_pool(path, step=…)``; the pools are closed after the test."""
    with contextlib.ExitStack() as stack:

        def make(path: Path, **options: Any) -> Pool:
            pool = Pool.open(path, "p", **{"create": True, **options})
            stack.callback(pool.close)
            return pool

        yield make


@pytest.fixture
def pool(open_pool: OpenPool, workdir: Path) -> Pool:
    """A new pool on the machine's own filesystem."""
    return open_pool(workdir / "pool")
