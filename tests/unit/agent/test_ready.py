"""The ready pipe of a starting server."""

from __future__ import annotations

import os

import pytest

from agent.ready import ReadyPipe
from fusevol.errors import UnavailableError
from fusevol.server.spec import MountSpec

SPEC = MountSpec(mount_id="m", source="/s", mountpoint="/m", control="/c", log="/l")


def _pipe(text: bytes) -> ReadyPipe:
    reader, writer = os.pipe()
    os.write(writer, text)
    os.close(writer)
    return ReadyPipe(reader, SPEC)


@pytest.mark.parametrize(
    ("text", "pid"), [(b"PID 17\nREADY\n", 17), (b"", None), (b"PID x\n", None), (b"READY\n", None), (b"PID 1", None)]
)
async def test_a_server_is_known_by_its_first_line(text: bytes, pid: int | None) -> None:
    """The first whole line names the process; without one there is none."""
    async with _pipe(text) as pipe:
        found = await pipe.born()

    assert found == pid


async def test_progress_then_ready() -> None:
    """Counts are passed on as they come, other words are ignored, READY ends it."""
    counts: list[int] = []

    async def progress(count: int) -> None:
        counts.append(count)

    async with _pipe(b"PID 1\nSCAN 5\nNEWS x\nSCAN 70\nSCAN x\nREADY\nSCAN 9\n") as pipe:
        await pipe.mounted(progress)

    assert counts == [5, 70]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"PID 1\nERROR No pool.\n", r"^No pool\.$"),
        (b"ERROR\n", "failed: see /l"),
        (b"PID 1\n", "ended before it had mounted"),
        (b"PID 1\nREAD", "ended before it had mounted"),
    ],
)
async def test_a_failure_is_a_sentence(text: bytes, sentence: str) -> None:
    """The server's own sentence is passed on; an end without a word is one too."""
    async with _pipe(text) as pipe:
        with pytest.raises(UnavailableError, match=sentence):
            await pipe.mounted(None)
