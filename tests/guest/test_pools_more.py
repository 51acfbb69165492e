"""The rest of the table of ``tests/pools/test_drivers.py``, on one kernel."""

# ruff: noqa: F401, F403  # fixtures and tests of elsewhere, with the backends of here
from __future__ import annotations

import pytest

from tests.guest import test_pools
from tests.pools.conftest import open_pool
from tests.pools.test_drivers import *

from tests.guest.backends import backend  # isort: skip  # in place of the other one

pytestmark = [pytest.mark.root, pytest.mark.guest("6.12")]
for name in [name for name in vars(test_pools) if name.startswith("test_")]:
    del globals()[name]
