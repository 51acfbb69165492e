"""The part of the table of ``tests/pools/test_drivers.py`` that depends on the kernel, on each kernel."""

# ruff: noqa: F401  # fixtures and tests of elsewhere, with the backends of here
from __future__ import annotations

import pytest

from tests.guest.backends import backend
from tests.pools.conftest import open_pool
from tests.pools.test_drivers import (
    made_pool,
    place,
    serve,
    test_inode_limit,
    test_limit,
    test_probed,
    test_server_sets_limits,
    test_size_shown,
)

pytestmark = [pytest.mark.root, pytest.mark.guest]
