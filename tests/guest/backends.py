"""What ``tests/pools/test_drivers.py`` runs over in a guest: XFS and ext4 with project quotas."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import LoopFs
from tests.guest.test_prjquota import FEATURES, KINDS, NAMES, Kind
from tests.pools.backends import Backend, by_du
from tests.support.devices import make_loop_fs


def _on(kind: Kind) -> Callable[[LoopFs, Path], Path]:
    def make(_loop_fs: LoopFs, workdir: Path) -> Path:
        pool = make_loop_fs(workdir, kind, 512 << 20, features=FEATURES[kind], options="loop,prjquota") / "pool"
        pool.mkdir()
        return pool

    return make


BACKENDS = [
    Backend(
        name=f"prjquota-{kind}",
        make=_on(kind),
        driver="prjquota",
        enforcer="kernel",
        inodes="kernel",
        early=NAMES[kind],
        snapshot="reflink" if kind == "xfs" else "copy",
        used=by_du,
    )
    for kind in KINDS
]


@pytest.fixture(params=BACKENDS, ids=lambda b: b.name)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each of them."""
    found: Backend = request.param
    return found
