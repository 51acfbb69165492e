"""Random operations on the filesystem and on a plain directory agree, and the quota is exact after each."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.conftest import StartServer
from tests.fs.machine import Direct, Machine, Mounted, Subject, du
from tests.support import eventually

EXAMPLES = int(os.environ.get("FUSEVOL_EXAMPLES", "25"))


def _settings(examples: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        print_blob=True,
    )


def test_unmounted() -> None:
    """Without a mount: results, errno and trees agree with a plain directory, and the ledger with du, step by step."""

    run_state_machine_as_test(Machine, settings=_settings(EXAMPLES))


def test_without_file_handles() -> None:
    """The same where nodes are found again by parent and name only."""

    class Nameful(Machine):
        def make(self, place: Path) -> Subject:
            subject = Direct(place)
            subject.fs._nodes.handles = False
            return subject

    run_state_machine_as_test(Nameful, settings=_settings(EXAMPLES // 2))


@pytest.mark.root
def test_on_a_mount(workdir: Path, volume_server: StartServer) -> None:
    """The same through a mount, whose server is asked for its usage after every step."""
    server = volume_server(quota="ledger")
    serial = iter(range(1_000_000))

    class OnMount(Machine):
        def make(self, place: Path) -> Subject:  # noqa: ARG002  # the mount is elsewhere
            root = server.mountpoint / f"r{next(serial)}"
            root.mkdir()

            def exact() -> None:
                subject = self.subject
                assert isinstance(subject, Mounted)
                if subject._held:
                    return  # files without a name are charged, and du does not see them

                def same() -> bool:
                    usage = server.settled()  # the kernel tells of closed files a moment later
                    return (usage["used_bytes"], usage["used_inodes"]) == du(server.source)

                assert eventually(same, what="ledger equals du")

            return Mounted(root, exact)

    run_state_machine_as_test(OnMount, settings=_settings(max(3, EXAMPLES // 5)))
