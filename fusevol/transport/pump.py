"""Drives pyfuse3's session loops by plain threads (:mod:`fusevol.transport.crew`).

pyfuse3 expects an event loop, trio's, but reaches it only through the module attribute ``pyfuse3.trio``: its own
asyncio support is a stand-in put there. :class:`Pump` is another stand-in, one whose "tasks" are threads that block.

Why no event loop. Measured on 2 CPUs, per request: trio's scheduling costs 23 us, ``trio.to_thread`` 150 us more, and
without ``to_thread`` one slow ``fsync`` stops the whole volume. A thread that calls the operation directly costs
nothing.

When leadership may pass. pyfuse3 keeps its only reference to a request's coroutine in a global variable until that
coroutine is suspended for the first time, and the next request overwrites it. So every handler begins with
``await started()``, one bare ``yield``; when that has come back to the thread that drives the coroutine, the awaiting
frame holds the reference, and from then on (:attr:`Worker.loose`) another thread may read. Earlier it may not.

Interrupted requests. A client that is killed takes its request back, possibly between poll(2) and read(2); the read
would then wait for the next request, and pyfuse3 holds the GIL there. The descriptor is therefore non-blocking, and the
EAGAIN that pyfuse3 does not know ends its loop, which is simply started again.
"""

from __future__ import annotations

import errno
import logging
import threading
import types
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import Any, Final, Self

from fusevol.transport.crew import ClosedResourceError, Crew, Worker
from fusevol.transport.hangs import Hangs, Request

log = logging.getLogger(__name__)

Loop = Callable[..., Coroutine[Any, Any, None]]


@types.coroutine
def started() -> Generator[None, None, None]:
    """Awaited first by every request handler: tells the pump that another thread may read requests now."""
    yield


class _Done:
    """An awaitable that is done: cheaper than a coroutine that does nothing."""

    def __await__(self) -> Generator[Any, None, None]:
        return iter(())  # type: ignore[return-value]  # any iterator will do; this one is made in C


_DONE: Final = _Done()


async def _no_loop(*_arguments: Any) -> None:
    """Stands for pyfuse3's session loop until that is known."""


class _Leadership:
    """What ``async with trio.Lock()`` is for pyfuse3. Leaving it keeps leadership: see the crew's essay."""

    def __init__(self, pump: Pump) -> None:
        self._lead = pump.lead

    def __aenter__(self) -> _Done:
        self._lead()
        return _DONE

    def __aexit__(self, *_exc: object) -> _Done:
        return _DONE


class _Nursery:
    """What ``async with trio.open_nursery()`` is for pyfuse3."""

    def __init__(self, pump: Pump) -> None:
        self._pump = pump
        self.start_soon = pump.start_soon

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._pump.wait()


class _LowLevel:
    """What ``trio.lowlevel`` is for pyfuse3."""

    def __init__(self, pump: Pump) -> None:
        self._wait = pump.wait_readable

    def wait_readable(self, fd: int) -> _Done:
        """Block until *fd* is readable."""
        self._wait(fd)
        return _DONE

    @staticmethod
    def current_trio_token() -> str:
        """Any value."""
        return "threads"

    @staticmethod
    def current_task() -> threading.Thread:
        """Anything with a ``name``."""
        return threading.current_thread()

    def notify_closing(self, _fd: int) -> None:
        """Never called: :meth:`Pump.close` ends the threads."""


class Pump(Crew):
    """What pyfuse3 takes for trio, and the threads behind it. One per process, as pyfuse3 has one session."""

    ClosedResourceError = ClosedResourceError

    def __init__(self, hangs: Hangs, told: Callable[[str, Sequence[Any]], Request], *, spin_us: int = 50) -> None:
        """*told* makes a :class:`Request` of a handler's name and arguments, and does not wait."""
        super().__init__(hangs, spin_us=spin_us)
        self._told = told
        self.lowlevel = _LowLevel(self)
        self._loop: Loop = _no_loop
        self._arguments: tuple[Any, ...] = ()

    def Lock(self) -> _Leadership:  # noqa: N802  # trio's name
        """The lock around "wait until readable": holding it is being the leader."""
        return _Leadership(self)

    def open_nursery(self) -> _Nursery:
        """The nursery of pyfuse3's main(): leaving it waits for all threads."""
        return _Nursery(self)

    def start_soon(self, loop: Loop, *arguments: Any, name: str | None = None) -> None:  # noqa: ARG002  # trio's signature
        """Start the first thread. pyfuse3's wishes for more are ignored: that is decided here."""
        if self._loop is not _no_loop:
            return
        self._loop, self._arguments = loop, arguments
        self.begin()

    def doing(self, what: tuple[str, Sequence[Any]] | None) -> None:
        """Called by each handler when it begins and ends: its name and arguments are what this thread does now."""
        self._local.worker.request = what

    def tell(self, worker: Worker) -> Request | None:
        """See :class:`Crew`."""
        request: Any = worker.request
        return self._told(*request) if request is not None else None

    def _work(self, worker: Worker) -> bool:
        """Drive one session loop to its end; returns whether another one must take its place."""
        send = self._loop(*self._arguments).send
        try:
            while True:
                send(None)
                # The handler of a request is suspended in started(). The next send runs it.
                self.began(worker)
        except StopIteration:
            pass
        except OSError as e:
            if e.errno == errno.EAGAIN:
                return True
            log.exception("reading a request failed")
            return self._may_go_on()
        except Exception:  # a bug must not end the session: the mount would be dead for all its users
            log.exception("a request was not answered")
            return self._may_go_on()
        self._over_if_leading(worker)
        return False
