"""Agents that die of kill -9 between two steps of their work, and what the next agent makes of that."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
from pathlib import Path
from typing import Protocol

from fusevol.errors import FusevolError
from tests.support.agent import Agent
from tests.support.logs import LogCheck
from tests.support.polling import eventually


class MortalAgent(Agent):
    """An agent that can be told after how many steps it dies; see :mod:`tests.support.mortal_agent`."""

    def __init__(self, directory: Path, logs: LogCheck) -> None:
        self._steps = directory / "agent.steps"
        self._kill = directory / "agent.kill"
        super().__init__(directory, logs, {"FUSEVOL_TEST_STEPS": str(self._steps)})

    def command(self, *arguments: str) -> list[str]:
        """As that of every agent, but the agent itself is the mortal one."""
        if arguments[0] == "agent":
            return [sys.executable, "-m", "tests.support.mortal_agent", *arguments]
        return super().command(*arguments)

    def steps(self) -> list[str]:
        """The steps since :meth:`forget`."""
        return self._steps.read_text().splitlines()

    def forget(self) -> None:
        """Begin to record the steps anew."""
        self._steps.write_text("")

    def doom(self, step: str, times: int = 1) -> None:
        """Let it die right after *step* has been done so many *times* from now on."""
        self.forget()
        self._kill.write_text(f"{step}\n" * times)

    def died(self) -> None:
        """Wait for the death that it was told to die, and let the next one live."""
        process = self._process
        assert process is not None
        doom = self._kill.read_text().splitlines()
        eventually(lambda: process.poll() is not None, 20.0, what=f"{doom[0]}, {len(doom)} times; had {self.steps()}")
        assert process.returncode == -signal.SIGKILL
        self._kill.unlink()


class Work(Protocol):
    """Something that an agent does in several steps, on things with the given *name*."""

    def prepare(self, name: str) -> None:
        """Make what the work begins with."""

    def begin(self, name: str) -> None:
        """Ask for it."""

    def done(self, name: str) -> bool:
        """Whether it is over, to the last step."""

    def check(self, name: str) -> None:
        """After an interruption: it is completed, or can be asked for again, and nothing is left over."""


def kill_at_every_step(agent: MortalAgent, work: Work, but: str = "$^", *, once: bool = False) -> list[str]:
    """Have *work* done, first as it should be, then again for each of its steps, with the agent killed after that step
    and started again. Returns the steps; those that match *but*, which others kill it at, are passed over, and with
    *once* all but the first and the last of equal steps."""
    work.prepare("whole")
    agent.forget()
    work.begin("whole")
    eventually(lambda: work.done("whole"), 20.0, what="the work, uninterrupted")
    steps = agent.steps()
    work.check("whole")
    for number, step in enumerate(steps):
        if re.match(but, step) or (once and step in steps[:number] and step in steps[number + 1 :]):
            continue
        name = f"w{number}"
        work.prepare(name)
        agent.doom(step, steps[: number + 1].count(step))
        with contextlib.suppress(FusevolError):  # a request that was under way ends with the agent
            work.begin(name)
        agent.died()
        agent.start()
        try:
            work.check(name)
        except Exception as e:
            e.add_note(f"after a kill at step {number} of {steps}")
            raise
    return steps
