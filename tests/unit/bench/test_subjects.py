"""What ``make bench`` changes on the machine is put back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.subjects import LeftOutError, offering_io_uring


@pytest.mark.parametrize("before", ["N", "Y"])
def test_io_uring_is_as_before_when_a_mount_fails(tmp_path: Path, before: str) -> None:
    """The parameter is Y meanwhile, and what it was afterwards."""
    parameter = tmp_path / "enable_uring"
    parameter.write_text(f"{before}\n")
    meanwhile = []

    def mount() -> None:
        meanwhile.append(parameter.read_text().strip())
        raise RuntimeError("a mount that fails")

    with pytest.raises(RuntimeError), offering_io_uring(parameter):
        mount()

    assert meanwhile == ["Y"]
    assert parameter.read_text().strip() == before


def test_a_kernel_without_io_uring_leaves_the_subject_out(tmp_path: Path) -> None:
    """With a reason, not with a traceback."""
    with pytest.raises(LeftOutError, match="no FUSE over io_uring"), offering_io_uring(tmp_path / "enable_uring"):
        pass
