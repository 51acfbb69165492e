"""Drives pyfuse3's session loops by plain threads: one leader reads, followers stand by.

pyfuse3 expects an event loop, trio's, but reaches it only through the module attribute ``pyfuse3.trio``: its own
asyncio support is a stand-in put there. :class:`Pump` is another stand-in, one whose "tasks" are threads that block.

Why no event loop. The filesystem is synchronous (a file operation on Linux is). Measured on 2 CPUs, per request:
trio's scheduling costs 23 us, ``trio.to_thread`` 150 us more, and without ``to_thread`` one slow ``fsync`` stops the
whole volume. A thread that calls the operation directly costs nothing.

Why a leader. Only one thread can usefully wait for the next request. It reads the request, answers it, and goes on as
the leader: handing every request to another thread would add a context switch, 20 to 60 us, to a request of 10 us.
Leadership passes to a follower only

* before an operation that is expected to block (``hand_over``: fsync, truncation), and
* when a watchdog finds that the leader has been in one operation for longer than a tick, whatever the reason. So an
  operation that hangs costs one thread, never the volume. The watchdog sleeps while the volume is idle: the first
  request after a pause wakes it.

When leadership may pass. pyfuse3 keeps its only reference to a request's coroutine in a global variable until that
coroutine is suspended for the first time, and the next request overwrites it. So every handler begins with
``await started()``, one bare ``yield``; when that has come back to the thread that drives the coroutine, the awaiting
frame holds the reference, and from then on (:attr:`_Worker.loose`) another thread may read. Earlier it may not.

Why spinning. A request on an otherwise idle machine is two wake-ups of a sleeping CPU, the server's and the
client's, 30 to 50 us each on this kind of virtual machine; the work between them is 10. So after a request the leader
looks for the next one without sleeping for up to ``spin_us``, yielding the CPU between two looks to whoever wants it.
It does so only while requests keep arriving that closely: a sleep that turned out short switches spinning on, one
fruitless spin followed by a long sleep switches it off. An idle volume uses no CPU. Measured (XFS, us per operation,
without and with): open + read + close 160 and 56, rename 170 and 94, unlink 117 and 69, create 210 and 115.
``spin_us=0`` switches it off, as does a single CPU.

Interrupted requests. A client that is killed takes its request back, possibly between poll(2) and read(2); the read
would then wait for the next request, and pyfuse3 holds the GIL there. The descriptor is therefore non-blocking, and the
EAGAIN that pyfuse3 does not know ends its loop, which is simply started again.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import threading
import types
from collections.abc import Callable, Coroutine, Generator
from time import perf_counter, sleep
from typing import Any, Final, Self

log = logging.getLogger(__name__)

THREADS: Final = 16
"""Threads that may stay; more are only started while all of these are blocked."""
_THREADS_LIMIT: Final = 512
_TICK: Final = 0.002
"""Seconds that an operation may take before the watchdog lets another thread read requests."""
_QUIET_TICKS: Final = 5
"""Ticks without a request after which the watchdog goes to sleep."""
_KEEP: Final = 5.0
"""Seconds that a follower waits for work before it ends."""
_FAILURES: Final = 1000
"""Errors of pyfuse3's own code after which the session is given up: it would only fail for ever."""
_CLOSE: Final = 4.0
"""A sleep shorter than this many spins means that requests are arriving closely."""

Loop = Callable[..., Coroutine[Any, Any, None]]


@types.coroutine
def started() -> Generator[None, None, None]:
    """Awaited first by every request handler: tells the pump that another thread may read requests now."""
    yield


class ClosedResourceError(Exception):
    """Ends a session loop of pyfuse3 from within its wait for requests."""


class _Done:
    """An awaitable that is done: cheaper than a coroutine that does nothing."""

    def __await__(self) -> Generator[Any, None, None]:
        return iter(())  # type: ignore[return-value]  # any iterator will do; this one is made in C


_DONE: Final = _Done()


async def _no_loop(*_arguments: Any) -> None:
    """Stands for pyfuse3's session loop until that is known."""


class _Worker:
    """One thread and its session loop."""

    def __init__(self, wake: int) -> None:
        self.gate = threading.Lock()
        self.gate.acquire()  # released by whoever makes this worker the leader, or ends it
        self.loose = False
        """Whether leadership may be taken from it: it is inside an operation."""
        self.serial = 0
        """How many requests it has begun."""
        self.near = False
        """Whether requests arrive so closely that spinning pays."""
        self.poll = select.poll()
        self.poll.register(wake, select.POLLIN)
        self.registered = False


class _Leadership:
    """What ``async with trio.Lock()`` is for pyfuse3. Leaving it keeps leadership: see the essay."""

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


class Pump:
    """What pyfuse3 takes for trio, and the threads behind it. One per process, as pyfuse3 has one session.

    Lock discipline: ``_mutex`` guards who leads, who waits and how many threads there are. It is held for a few
    instructions only and never across a system call.
    """

    ClosedResourceError = ClosedResourceError

    def __init__(self, *, threads: int = THREADS, spin_us: int = 50, tick: float = _TICK, linger: float = 5.0) -> None:
        self.lowlevel = self  # pyfuse3 says trio.lowlevel.wait_readable
        self._threads_wanted = threads
        self._spin = spin_us * 1e-6 if len(os.sched_getaffinity(0)) > 1 else 0.0
        self._tick = tick
        self._mutex = threading.Lock()
        self._local = threading.local()
        self._leader: _Worker | None = None
        self._waiting: list[_Worker] = []
        self._count = 0
        self._peak = 0
        self._closing = False
        self._over = threading.Event()
        self._done = threading.Event()
        self._linger = linger
        self._armed = False
        self._alarm = threading.Semaphore(0)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._loop: Loop = _no_loop
        self._arguments: tuple[Any, ...] = ()
        self._failures = 0

    def __repr__(self) -> str:
        return f"<Pump threads={self._count} waiting={len(self._waiting)} peak={self._peak} closing={self._closing}>"

    @property
    def threads(self) -> int:
        """How many threads answer requests or stand by (without the watchdog)."""
        return self._count

    @property
    def peak(self) -> int:
        """The most threads that there ever were."""
        return self._peak

    # -- what pyfuse3 calls on its event loop -------------------------------------------------------------------------

    def Lock(self) -> _Leadership:  # noqa: N802  # trio's name
        """The lock around "wait until readable": holding it is being the leader."""
        return _Leadership(self)

    def open_nursery(self) -> _Nursery:
        """The nursery of pyfuse3's main(): leaving it waits for all threads."""
        return _Nursery(self)

    def current_trio_token(self) -> str:
        """Any value."""
        return "threads"

    def current_task(self) -> threading.Thread:
        """Anything with a ``name``."""
        return threading.current_thread()

    def start_soon(self, loop: Loop, *arguments: Any, name: str | None = None) -> None:  # noqa: ARG002  # trio's signature
        """Start the first thread. pyfuse3's wishes for more are ignored: that is decided here."""
        if self._loop is not _no_loop:
            return
        self._loop, self._arguments = loop, arguments
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        with self._mutex:
            self._start()

    def notify_closing(self, _fd: int) -> None:
        """End all threads once the requests they are at are answered."""
        self.close()

    def lead(self) -> None:
        """Be the leader, or wait until made one. Raises :class:`ClosedResourceError` if the thread is to end."""
        worker: _Worker = self._local.worker
        with self._mutex:
            worker.loose = False
            if self._closing:
                raise ClosedResourceError
            if self._leader is worker:
                return
            if self._count > self._threads_wanted:
                raise ClosedResourceError  # it was needed while all others were blocked
            self._waiting.append(worker)
        self._stand_by(worker)

    def wait_readable(self, fd: int) -> _Done:
        """Return when there is a request to read on *fd*. Called by the leader only."""
        worker: _Worker = self._local.worker
        if not worker.registered:
            os.set_blocking(fd, False)
            worker.poll.register(fd, select.POLLIN)
            worker.registered = True
        poll = worker.poll.poll
        if worker.near:
            end = perf_counter() + self._spin
            while perf_counter() < end:
                if poll(0):
                    return self._readable()
                os.sched_yield()
        asleep = perf_counter()
        poll()
        worker.near = perf_counter() - asleep < _CLOSE * self._spin
        return self._readable()

    def _readable(self) -> _Done:
        if self._closing:
            raise ClosedResourceError
        return _DONE

    # -- what others call ---------------------------------------------------------------------------------------------

    def hand_over(self) -> None:
        """Called by an operation that is about to block: lets another thread read requests. Never waits."""
        worker: _Worker | None = getattr(self._local, "worker", None)
        if worker is not None:
            with self._mutex:
                if self._leader is worker and worker.loose and not self._closing:
                    self._promote(self._threads_wanted)

    def close(self) -> None:
        """Let every thread finish its request and end. For any thread."""
        with self._mutex:
            self._closing = True
            waiting, self._waiting = self._waiting, []
        self._over.set()
        os.eventfd_write(self._wake, 1)
        self._alarm.release()
        for worker in waiting:
            worker.gate.release()

    def wait(self) -> bool:
        """Wait until the session is over and its threads have ended; ``False`` if some hang for longer than linger."""
        self._over.wait()
        return self._done.wait(self._linger)

    # -- threads ------------------------------------------------------------------------------------------------------

    def _promote(self, limit: int) -> None:
        """Give leadership to a follower, or to a new thread if there are fewer than *limit*. Holds the mutex."""
        if self._waiting:
            worker = self._waiting.pop()  # the one that ran last: its stack is still in the cache
            self._leader = worker
            worker.gate.release()
        elif self._count < limit:
            self._start()

    def _start(self) -> None:
        """Start a thread that is the leader. Holds the mutex."""
        worker = _Worker(self._wake)
        thread = threading.Thread(target=self._run, args=(worker,), name=f"fuse-{self._peak}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads (RLIMIT_NPROC, pids cgroup): the next tick tries again
            log.warning("no further thread could be started, %d are busy", self._count)
            return
        self._leader = worker
        self._count += 1
        self._peak = max(self._peak, self._count)

    def _stand_by(self, worker: _Worker) -> None:
        if not worker.gate.acquire(timeout=_KEEP):
            with self._mutex:
                if worker in self._waiting:
                    self._waiting.remove(worker)
                    raise ClosedResourceError  # nobody needed it
            worker.gate.acquire()  # it was just chosen
        if self._closing:
            raise ClosedResourceError

    def _run(self, worker: _Worker) -> None:
        self._local.worker = worker
        with self._mutex:
            pass  # whoever started this thread has now made it the leader
        try:
            while self._session(worker):
                pass
        finally:
            with self._mutex:
                self._count -= 1
                last = self._count == 0
            if last:
                self._done.set()

    def _session(self, worker: _Worker) -> bool:
        """Drive one session loop to its end; returns whether another one must take its place."""
        send = self._loop(*self._arguments).send
        try:
            while True:
                send(None)
                # The handler of a request is suspended in started(). The next send runs it.
                worker.serial += 1
                worker.loose = True
                if not self._armed:
                    self._armed = True
                    self._alarm.release()
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
        # The loop ended: either this thread is not needed (a follower), or the session is over (the leader).
        with self._mutex:
            over = self._leader is worker
        if over:
            self.close()
        return False

    def _may_go_on(self) -> bool:
        self._failures += 1
        if self._failures <= _FAILURES:
            return True
        log.critical("the session ends after %d failures", self._failures)
        self.close()
        return False

    def _watch(self) -> None:
        """The watchdog's thread."""
        while not self._closing:
            self._alarm.acquire()
            quiet = 0
            before: tuple[_Worker | None, int] = (None, 0)
            while quiet < _QUIET_TICKS and not self._closing:
                sleep(self._tick)
                with self._mutex:
                    leader = self._leader
                    now = (leader, leader.serial if leader else 0)
                    if now != before:
                        quiet = 0
                    elif leader is None or not leader.loose:
                        quiet += 1
                    elif not self._closing:
                        self._promote(_THREADS_LIMIT)
                before = now
            self._armed = False
            leader = self._leader
            if leader is not None and leader.loose and not self._armed:
                self._armed = True  # a request came between the last look and here
                self._alarm.release()
