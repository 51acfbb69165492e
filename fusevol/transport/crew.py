"""The threads that answer one connection's requests: one leader reads, followers stand by.

The filesystem is synchronous (a file operation on Linux is), so a thread that has read a request carries it out itself.

Why a leader. Only one thread can usefully wait for the next request. It reads the request, answers it, and goes on as
the leader: handing every request to another thread would add a context switch, 20 to 60 us, to a request of 10 us.
Leadership passes to a follower only

* before an operation that is expected to block (``hand_over``: fsync, truncation), and
* when a watchdog finds that the leader has been in one operation for longer than a tick, whatever the reason. So an
  operation that hangs costs one thread, never the volume. The watchdog sleeps while the volume is idle: the first
  request after a pause wakes it.

Why spinning. A request on an otherwise idle machine is two wake-ups of a sleeping CPU, the server's and the
client's, 30 to 50 us each on this kind of virtual machine; the work between them is 10. So after a request the leader
looks for the next one without sleeping for up to ``spin_us``, yielding the CPU between two looks to whoever wants it.
It does so only while requests keep arriving that closely: a sleep that turned out short switches spinning on, one
fruitless spin followed by a long sleep switches it off. An idle volume uses no CPU. Measured (XFS, us per operation,
without and with): open + read + close 160 and 56, rename 170 and 94, unlink 117 and 69, create 210 and 115.
``spin_us=0`` switches it off, as does a single CPU.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from functools import partial
from time import perf_counter, sleep
from typing import Final

from fusevol.transport.gate import Gate
from fusevol.transport.hangs import LOOK, Hangs, Request

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
"""Unexpected errors of the loop itself after which the session is given up: it would only fail for ever."""
_TIDYING: Final = Request("forget", 0, "what was removed", 0)
_CLOSE: Final = 4.0
"""A sleep shorter than this many spins means that requests are arriving closely."""


class ClosedResourceError(Exception):
    """Ends a thread's loop from within its wait for requests."""


class Worker:
    """One thread of a crew."""

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
        self.tidying = False
        """Whether what it carries out is not a request, but what was put off."""
        self.request: object = None
        """What it carries out, as its transport keeps it (:meth:`Crew.tell`)."""


class Crew(ABC):
    """The threads. A subclass says what one of them does: :meth:`_work`.

    Lock discipline: ``_mutex`` guards who leads, who waits and how many threads there are. It is held for a few
    instructions only and never across a system call.
    """

    def __init__(
        self, hangs: Hangs, *, threads: int = THREADS, spin_us: int = 50, tick: float = _TICK, linger: float = 5.0
    ) -> None:
        self._threads_wanted = threads
        self._spin = spin_us * 1e-6 if len(os.sched_getaffinity(0)) > 1 else 0.0
        self._tick = tick
        self._mutex = threading.Lock()
        self._local = threading.local()
        self._leader: Worker | None = None
        self._workers: set[Worker] = set()
        self._waiting: list[Worker] = []
        self._count = 0
        self._peak = 0
        self._served = 0
        """Requests that threads which have ended had begun, without what was put off and done by any."""
        self._closing = False
        self._over = threading.Event()
        self._done = threading.Event()
        self._linger = linger
        self._armed = False
        self._alarm = threading.Semaphore(0)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._failures = 0
        self.gate = Gate()
        self._hangs = hangs
        hangs.follow(self._requests)

    def __repr__(self) -> str:
        state = f"threads={self._count} waiting={len(self._waiting)} peak={self._peak} closing={self._closing}"
        return f"<{type(self).__name__} {state}>"

    @property
    def threads(self) -> int:
        """How many threads answer requests or stand by (without the watchdog)."""
        return self._count

    @property
    def under_way(self) -> int:
        """How many operations are being carried out."""
        with self._mutex:
            return sum(worker.loose for worker in self._workers)

    @property
    def served(self) -> int:
        """How many requests were begun."""
        with self._mutex:
            return self._served + sum(worker.serial for worker in self._workers)

    @property
    def peak(self) -> int:
        """The most threads that there ever were."""
        return self._peak

    # -- what a worker does ------------------------------------------------------------------------------------------

    @abstractmethod
    def _work(self, worker: Worker) -> bool:
        """Answer requests: :meth:`lead`, :meth:`wait_readable`, read, :meth:`began`, carry out, and again.

        Returns whether it must be called again. :class:`ClosedResourceError` ends the thread.
        """

    def _untidy(self) -> bool:
        """Whether there is something that can wait until no request does."""
        return False

    def _tidy(self) -> None:  # noqa: B027  # for who has something
        """Do a small piece of it."""

    def _tidied(self, worker: Worker) -> bool:
        """Do a small piece of it, if there is any, as an operation: when it takes long, another thread leads."""
        if not self._untidy():
            return False
        worker.tidying = True
        self.began(worker)
        self._served -= 1  # only the leader is here
        self._tidy()
        self.lead()
        worker.tidying = False
        return True

    @abstractmethod
    def tell(self, worker: Worker) -> Request | None:
        """What *worker* carries out. Called by any thread, and without waiting; ``None`` if it cannot be told."""

    def begin(self) -> None:
        """Start the first thread and the watchdog."""
        self._watchdog = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._watchdog.start()
        with self._mutex:
            self._start()

    def reopen(self) -> None:
        """Read on after :meth:`close`. A thread that has not ended yet finishes its request, and stays."""
        self._watchdog.join()
        os.eventfd_read(self._wake)
        self._over.clear()
        self._done.clear()
        self._closing = False
        self.begin()

    def began(self, worker: Worker) -> None:
        """*worker* carries out a request from here on: another thread may read."""
        worker.serial += 1
        worker.loose = True
        while self.gate.shut:  # looked at after it was said: who shuts it looks in the other order
            worker.loose = False
            self.gate.stand()
            worker.loose = True
        if not self._armed:
            self._armed = True
            self._alarm.release()

    def lead(self) -> None:
        """Be the leader, or wait until made one. Raises :class:`ClosedResourceError` if the thread is to end."""
        worker: Worker = self._local.worker
        if self.gate.shut:
            worker.loose = False
            self.gate.left()
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

    def wait_readable(self, fd: int) -> None:
        """Return when there is a request to read on *fd*. Called by the leader only."""
        worker: Worker = self._local.worker
        if not worker.registered:
            os.set_blocking(fd, False)
            worker.poll.register(fd, select.POLLIN)
            worker.registered = True
        poll = worker.poll.poll
        if worker.near:
            end = perf_counter() + self._spin
            while perf_counter() < end:
                if poll(0):
                    self._check_open()
                    return
                if not self._tidied(worker):
                    os.sched_yield()
        while self._tidied(worker):
            pass
        asleep = perf_counter()
        poll()
        worker.near = perf_counter() - asleep < _CLOSE * self._spin
        self._check_open()

    def _check_open(self) -> None:
        if self._closing:
            raise ClosedResourceError

    # -- what others call ---------------------------------------------------------------------------------------------

    def hand_over(self) -> None:
        """Called by an operation that is about to block: lets another thread read requests. Never waits."""
        worker: Worker | None = getattr(self._local, "worker", None)
        if worker is not None:
            with self._mutex:
                if self._leader is worker and worker.loose and not self._closing:
                    self._promote(self._threads_wanted)

    def close(self) -> None:
        """Let every thread finish its request and end. For any thread."""
        self.gate.open()
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
        worker = Worker(self._wake)
        thread = threading.Thread(target=self._run, args=(worker,), name=f"fuse-{self._peak}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads (RLIMIT_NPROC, pids cgroup): the next tick tries again
            log.warning("no further thread could be started, %d are busy", self._count)
            return
        self._leader = worker
        self._count += 1
        self._peak = max(self._peak, self._count)

    def _stand_by(self, worker: Worker) -> None:
        if not worker.gate.acquire(timeout=_KEEP):
            with self._mutex:
                if worker in self._waiting:
                    self._waiting.remove(worker)
                    raise ClosedResourceError  # nobody needed it
            worker.gate.acquire()  # it was just chosen
        if self._closing:
            raise ClosedResourceError

    def _run(self, worker: Worker) -> None:
        self._local.worker = worker
        with self._mutex:  # whoever started this thread has now made it the leader
            self._workers.add(worker)
        try:
            while self._work(worker):
                pass
        except ClosedResourceError:
            pass
        finally:
            with self._mutex:
                self._count -= 1
                self._served += worker.serial
                self._workers.discard(worker)
                last = self._count == 0
            if last:
                self._done.set()

    def _over_if_leading(self, worker: Worker) -> None:
        """The loop of *worker* ended: it is not needed (a follower), or the session is over (the leader)."""
        with self._mutex:
            over = self._leader is worker
        if over:
            self.close()

    def _may_go_on(self) -> bool:
        self._failures += 1
        if self._failures <= _FAILURES:
            return True
        log.critical("the session ends after %d failures", self._failures)
        self.close()
        return False

    def _requests(self) -> dict[Hashable, Callable[[], Request | None]]:
        """What is under way, for :class:`~fusevol.transport.hangs.Hangs`."""
        with self._mutex:
            at_work = [(worker, worker.serial) for worker in self._workers if worker.loose]

        def look(worker: Worker, serial: int) -> Request | None:
            found = _TIDYING if worker.tidying else self.tell(worker)
            return found if worker.loose and worker.serial == serial else None

        return {key: partial(look, *key) for key in at_work}

    def _watch(self) -> None:
        """The watchdog's thread."""
        while not self._closing:
            # while nothing new is asked, what is under way is looked at all the same
            self._alarm.acquire(timeout=LOOK if self.under_way else None)
            quiet = 0
            before: tuple[Worker | None, int] = (None, 0)
            while quiet < _QUIET_TICKS and not self._closing:
                sleep(self._tick)
                self._hangs.look()
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
