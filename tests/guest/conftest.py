"""Tests marked ``guest`` run in guests, on kernels that have what this machine's may not have (``make guest``)."""

from __future__ import annotations

import os

import pytest

from tests.support import guest, guest_items

_INSIDE = guest.INSIDE in os.environ


def pytest_configure(config: pytest.Config) -> None:
    """Announce the marker; in a guest, report to the host."""
    config.addinivalue_line("markers", "guest: runs in a guest, once per kernel")
    if guest_items.REPORTS in os.environ:
        config.pluginmanager.register(guest_items.Reporter())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On the host, the tests of this directory stand for those in the guests."""
    if not _INSIDE:
        guest_items.replace(items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Leave no guest running."""
    if not _INSIDE:
        guest_items.end_all(session.config)
