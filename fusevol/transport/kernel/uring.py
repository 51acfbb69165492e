"""Requests over io_uring (Linux 6.14, and the fuse module's parameter ``enable_uring``).

One system call answers a request and waits for the next, on the CPU of whoever asks: a request is a switch between
two tasks, without waking another CPU. The kernel has a queue per CPU, and puts a request into an *entry* of the
queue of the caller's CPU: two buffers of ours, for header and payload, that it was told of by REGISTER.

One thread, one ring, one entry. An entry's requests are delivered in the context of the thread that submitted it, so
a thread that is held up by a slow disk holds up what is delivered to its other entries. With one entry there are no
others: the kernel gives the next request to another thread's entry, and since it takes the entry that was given back
last, one thread does all the work for as long as nothing is slow. Where all of a queue's threads are held up, a
watchdog adds one, so that an operation that hangs costs a thread and no other program's time. Threads that were added
stay: the kernel has no way to take an entry back.

FORGET and INTERRUPT still come through /dev/fuse, which one thread reads.

Once io_uring was agreed on in INIT, the kernel holds every request back until each queue has an entry (fuse_block_alloc
in fs/fuse/dev.c): a server that gets no further would hang its users. What lets go is a REGISTER that the kernel
refuses; from then on requests come over /dev/fuse. So there is a ring before INIT is answered, the *lever*; a thread
makes its ring before any entry is registered; and while a queue has no entry, no request can be lost with the others.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
import threading
from collections.abc import Callable, Hashable
from functools import partial
from pathlib import Path
from struct import Struct
from time import monotonic, sleep
from typing import Final, Self

from fusevol.errors import UnavailableError
from fusevol.transport.gate import Gate
from fusevol.transport.hangs import LOOK, Hangs, Request
from fusevol.transport.kernel import protocol as p
from fusevol.transport.kernel.asking import Askers
from fusevol.transport.kernel.connection import Connection
from fusevol.transport.kernel.operations import Operations
from fusevol.transport.kernel.parameter import PARAMETER, enabled
from fusevol.transport.kernel.protocol import Op
from fusevol.transport.kernel.region import Region
from fusevol.transport.kernel.replay import WITHOUT_TRACE, Replay
from fusevol.transport.kernel.ring import Ring

log = logging.getLogger(__name__)

_POSSIBLE: Final = Path("/sys/devices/system/cpu/possible")
_REGISTER: Final = 1
_COMMIT_AND_FETCH: Final = 2
_NO_QUEUE: Final = 0xFFFF
"""A queue that no machine has."""
_OPERATION: Final = 128
"""Where the first argument is in the header buffer (struct fuse_uring_req_header)."""
_STATE: Final = 256
_STATE_IN: Final = Struct("=8xQI")  # flags commit_id payload_sz
_PAYLOAD_SIZE: Final = Struct("=I")
_PAYLOAD_SIZE_AT: Final = _STATE + 16
_HEADER_SIZE: Final = 288
_IOVECS: Final = 512
"""Where the iovecs are, in the same page behind the header."""
_IOVEC: Final = Struct("=QQQQ")
_PAGE: Final = mmap.PAGESIZE
_SLOTS: Final = 512
"""Entries of all queues, at the most."""
_WORD: Final = Struct("=Q")
_ANSWERED_AT: Final = 1024
"""The last request of the entry whose answer is in its buffers (a commit id)."""
_SAVED_AT: Final = 1032
"""The last request of which there is a copy, since its answer is written over it."""
_QUEUE_AT: Final = 1040
"""The entry's queue, plus one."""
_COPY_AT: Final = 1088
_COPY_REST_AT: Final = 1536
_COPY_REST: Final = 2048
"""Bytes of the payload that are copied. Longer ones are data, whose answers are a few bytes."""
_STATFS: Final = int(Op.STATFS)
_TICK: Final = 0.004
"""Seconds that an operation may take before another thread stands by for its queue."""
_QUIET_TICKS: Final = 5
_ENDED: Final = frozenset({-errno.ENOTCONN, -errno.ECONNABORTED, -errno.ECANCELED, -errno.ENODEV})


class Lever:
    """A ring that is there before INIT is answered. Pulled, it has the kernel send requests over /dev/fuse after all.

    A context manager, for the thread that makes it.
    """

    def __init__(self, *, wanted: bool) -> None:
        self._ring: Ring | None = None
        self.why_not = ""
        """The reason why there is none, and requests cannot come over io_uring."""
        if not wanted:
            self.why_not = "it is switched off for this mount"
        elif not PARAMETER.exists():
            self.why_not = "this kernel's FUSE has none (Linux 6.14 has)"
        elif not enabled():
            self.why_not = f"{PARAMETER} is N"
        else:
            try:
                self._ring = Ring()
            except OSError as e:
                self.why_not = f"the system refuses it: {e.strerror}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._ring is not None:
            self._ring.close()

    def pull(self, connection: Connection) -> None:
        """Let go of the requests that wait for entries: ask for one that the kernel refuses. Raises ``OSError``."""
        if self._ring is None:
            return  # nothing was agreed on
        self._ring.push(connection.fd, _REGISTER, 0, 0, _NO_QUEUE)
        self._ring.enter(1, wait=False)
        if self._ring.completed() is None:
            raise OSError(errno.EBUSY, "the kernel waits for an entry that cannot be")


def queues() -> int:
    """How many queues the kernel has: one per possible CPU (cpu_possible_mask)."""
    last = _POSSIBLE.read_text().strip().split(",")[-1].split("-")[-1]
    return int(last) + 1


def entry_size(max_write: int) -> int:
    """Bytes of an entry's payload buffer (fuse_uring_create in fs/fuse/dev_uring.c wants no less)."""
    return max(max_write, 2 * _PAGE) + _PAGE


class _Slot:
    """One entry: its thread, its buffers."""

    __slots__ = ("address", "busy", "header", "payload", "queue", "registered", "served", "thread")

    def __init__(self, region: Region, index: int, size: int, queue: int | None) -> None:
        start = index * (_PAGE + size)
        self.address = region.address + start
        self.header = region.view[start : start + _PAGE]
        self.payload = region.view[start + _PAGE : start + _PAGE + size]
        if queue is None:
            queue = _WORD.unpack_from(self.header, _QUEUE_AT)[0] - 1
        _WORD.pack_into(self.header, _QUEUE_AT, queue + 1)
        self.queue = queue
        self.busy = 0.0
        """When the operation that it carries out began; 0 if there is none."""
        self.served = 0
        """How many operations it has begun."""
        self.thread: threading.Thread | None = None
        self.registered = False
        _IOVEC.pack_into(self.header, _IOVECS, self.address, _HEADER_SIZE, self.address + _PAGE, size)

    def save(self, commit: int) -> None:
        """Copy what the answer will be written over, so that the request can be carried out again."""
        header = self.header
        header[_COPY_AT : _COPY_AT + _HEADER_SIZE] = header[:_HEADER_SIZE]
        size = min(_STATE_IN.unpack_from(header, _STATE)[1], _COPY_REST)
        header[_COPY_REST_AT : _COPY_REST_AT + size] = self.payload[:size]
        _WORD.pack_into(header, _SAVED_AT, commit)

    def restore(self, commit: int) -> None:
        """The request as it came, where an answer may have been half written over it."""
        header = self.header
        if _WORD.unpack_from(header, _SAVED_AT)[0] != commit:
            return  # it was not begun
        header[:_HEADER_SIZE] = header[_COPY_AT : _COPY_AT + _HEADER_SIZE]
        size = min(_STATE_IN.unpack_from(header, _STATE)[1], _COPY_REST)
        self.payload[:size] = header[_COPY_REST_AT : _COPY_REST_AT + size]


class Rings:
    """The threads that carry out what comes over io_uring."""

    def __init__(
        self,
        connection: Connection,
        operations: Operations,
        replay: Replay | None,
        rings: int,
        mountpoint: str,
        hangs: Hangs,
    ) -> None:
        self._connection = connection
        self._operations = operations
        self._replay = replay
        self._queues = queues()
        self._size = entry_size(connection.max_write)
        self._region = Region(rings, _SLOTS * (_PAGE + self._size))
        self._slots: list[_Slot] = []
        self._lock = threading.Lock()
        self._ringed = threading.Semaphore(0)
        self._may_register = threading.Event()
        """Every thread has its ring."""
        self._registered = threading.Semaphore(0)
        self._may_serve = threading.Event()
        """Every queue has an entry."""
        self._failed: OSError | None = None
        self._closing = False
        self._armed = False
        self._alarm = threading.Semaphore(0)
        self._allowed = os.sched_getaffinity(0)
        self._askers = Askers(mountpoint)
        self.gate = Gate()
        self._hangs = hangs
        hangs.follow(self._requests)

    def __repr__(self) -> str:
        return f"<Rings queues={self._queues} threads={self.threads}>"

    @property
    def threads(self) -> int:
        """How many threads answer requests or stand by."""
        return len(self._slots)

    def begin(self, seconds: float = 10.0) -> None:
        """Register an entry for every queue, or those of an earlier server; requests come from then on.

        Raises ``OSError`` when the system refuses: no request has come, and the :class:`Lever` sends them over
        /dev/fuse. Raises :class:`UnavailableError` when it is too late for that.
        """
        found = self._left_behind()
        try:
            self._register(found, seconds)
        except OSError as e:
            if not self.close(seconds) or found or self._complete():
                raise UnavailableError(f"requests come over io_uring, which the system refuses: {e.strerror}") from e
            raise
        for queue in range(self._queues if found else 0):
            # what was asked for while no server lived waits for an entry that has just answered (see _relieve)
            with contextlib.suppress(OSError):
                self._askers.ask(queue)
        threading.Thread(target=self._watch, name="ring-watchdog", daemon=True).start()

    def _register(self, found: int, seconds: float) -> None:
        for index in range(found):
            self._start(_Slot(self._region, index, self._size, None))
        if not found:
            for queue in range(self._queues):
                for _ in range(2 if self._queues <= 8 else 1):
                    self._add(queue)
        self._await(self._ringed, seconds)
        if self._failed is not None:
            raise self._failed
        self._may_register.set()
        self._await(self._registered, seconds)
        if not self._complete() or (found and self._failed is not None):
            raise self._failed or OSError(errno.ENOENT, "an earlier server has left too few entries")
        if self._failed is not None:
            log.info("there are fewer entries than wanted: %s", self._failed.strerror)
        self._may_serve.set()

    def _complete(self) -> bool:
        """Whether every queue has an entry, so that the kernel uses them."""
        return {slot.queue for slot in self._slots if slot.registered} == set(range(self._queues))

    def _await(self, step: threading.Semaphore, seconds: float) -> None:
        """Until every thread has done *step*, or told why it cannot."""
        for _ in range(len(self._slots)):
            if not step.acquire(timeout=seconds):
                raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    def _left_behind(self) -> int:
        """How many entries an earlier server had."""
        step = _PAGE + self._size
        for index in range(_SLOTS):
            if not _WORD.unpack_from(self._region.view, index * step + _QUEUE_AT)[0]:
                return index
        return _SLOTS

    @property
    def under_way(self) -> int:
        """How many operations are being carried out."""
        return sum(slot.busy > 0 for slot in list(self._slots))

    @property
    def served(self) -> int:
        """How many operations were begun."""
        return sum(slot.served for slot in list(self._slots))

    def close(self, seconds: float) -> bool:
        """The connection is over: wait up to *seconds* for the threads; ``False`` if some hang in an operation."""
        self._closing = True
        self._may_register.set()
        self._may_serve.set()
        self._alarm.release()
        end = monotonic() + seconds
        for slot in list(self._slots):
            if slot.thread is not None:
                slot.thread.join(max(0.0, end - monotonic()))
        return not any(slot.thread is not None and slot.thread.is_alive() for slot in self._slots)

    def _add(self, queue: int) -> None:
        with self._lock:
            if len(self._slots) < _SLOTS:
                self._start(_Slot(self._region, len(self._slots), self._size, queue))

    def _start(self, slot: _Slot) -> None:
        name = f"ring-{slot.queue}.{len(self._slots)}"
        thread = threading.Thread(target=self._run, args=(slot,), name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as e:  # RLIMIT_NPROC, pids cgroup
            raise OSError(errno.EAGAIN, "no further thread can be started") from e
        slot.thread = thread
        self._slots.append(slot)

    def _run(self, slot: _Slot) -> None:
        if slot.queue in self._allowed:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, {slot.queue})
        try:
            ring = Ring()
        except OSError as e:
            self._failed = e
            self._ringed.release()
            self._registered.release()
            return
        self._ringed.release()
        self._may_register.wait()
        try:
            if not self._closing:
                self._take_up(slot, ring)
        except Exception:
            log.exception("a ring thread of queue %d ended", slot.queue)
        finally:
            ring.close()

    def _take_up(self, slot: _Slot, ring: Ring) -> None:
        """Register the entry, or answer the request that an earlier server left in it; then serve."""
        fd, iovecs, queue = self._connection.fd, slot.address + _IOVECS, slot.queue
        commit = _STATE_IN.unpack_from(slot.header, _STATE)[0]
        result: int | None = -errno.ENOENT
        if commit:
            if commit != _WORD.unpack_from(slot.header, _ANSWERED_AT)[0]:
                slot.restore(commit)
                self._carry_out(slot, commit, again=True)
            # the answer is there; whether the kernel has it already is not known, but the kernel knows
            ring.push(fd, _COMMIT_AND_FETCH, iovecs, commit, queue)
            ring.enter(1, wait=False)
            result = ring.completed()
        if result is not None and result < 0:
            ring.push(fd, _REGISTER, iovecs, 0, queue)
            ring.enter(1, wait=False)
            result = ring.completed()
        if result is not None and result < 0:  # it completes at once only when it is refused
            self._failed = OSError(-result, os.strerror(-result))
        slot.registered = result is None or result >= 0
        self._registered.release()
        self._may_serve.wait()
        if slot.registered:
            self._work(slot, ring, result)

    def _work(self, slot: _Slot, ring: Ring, result: int | None) -> None:
        fd, iovecs, queue, header = self._connection.fd, slot.address + _IOVECS, slot.queue, slot.header
        state, carry_out = _STATE_IN.unpack_from, self._carry_out
        pending = 0
        while not self._closing:
            if result is None:
                try:
                    ring.enter(pending, wait=True)
                except OSError as e:
                    if e.errno == errno.EINTR:
                        continue
                    raise
                pending = 0
                result = ring.completed()
                if result is None:
                    continue
            if result < 0:
                if result not in _ENDED:
                    log.warning("an entry of queue %d failed: %s", queue, os.strerror(-result))
                return
            result = None
            commit = state(header, _STATE)[0]
            slot.save(commit)
            slot.busy = monotonic()
            if not self._armed:
                self._armed = True
                self._alarm.release()
            while self.gate.shut:  # looked at after it was said: who shuts it looks in the other order
                slot.busy = 0.0
                self.gate.stand()
                slot.busy = monotonic()
            carry_out(slot, commit)
            slot.busy = 0.0
            if self.gate.shut:
                self.gate.left()
            ring.push(fd, _COMMIT_AND_FETCH, iovecs, commit, queue)
            pending = 1

    def _carry_out(self, slot: _Slot, commit: int, *, again: bool = False) -> None:
        """Carry the request in the entry out, and put the answer in its place."""
        slot.served += 1
        header, replay = slot.header, self._replay
        _size, op, unique, node, uid, gid, pid, _extensions = p.IN_HEADER.unpack_from(header)
        ids = (uid, gid, pid)
        rest = slot.payload[: _STATE_IN.unpack_from(header, _STATE)[1]]
        if again and replay is not None:
            found = replay.again(unique, op, node, header, _OPERATION, rest, ids)
        elif op in WITHOUT_TRACE and replay is not None:
            found = replay.first_time(unique, op, node, header, _OPERATION, rest, ids)
        elif op == _STATFS and self._askers.has(pid):
            found = errno.EAGAIN
        else:
            found = self._operations.carry_out(op, node, header, _OPERATION, rest, ids)
        self._put(slot, unique, found)
        _WORD.pack_into(header, _ANSWERED_AT, commit)

    @staticmethod
    def _put(slot: _Slot, unique: int, found: bytes | int | None) -> None:
        """Write an answer into the entry's buffers."""
        header = slot.header
        if isinstance(found, bytes) and found:
            size = len(found)
            p.OUT_HEADER.pack_into(header, 0, p.OUT_HEADER.size + size, 0, unique)
            slot.payload[:size] = found
            _PAYLOAD_SIZE.pack_into(header, _PAYLOAD_SIZE_AT, size)
            return
        error = found if isinstance(found, int) else 0
        p.OUT_HEADER.pack_into(header, 0, p.OUT_HEADER.size, -error, unique)
        _PAYLOAD_SIZE.pack_into(header, _PAYLOAD_SIZE_AT, 0)

    def _relieve(self, queue: int) -> None:
        """Add a thread to *queue*, and have it take what waits there already.

        A new entry is offered new requests only; those that wait are given to an entry that has just answered one
        (fuse_uring_do_register and fuse_uring_commit_fetch in fs/fuse/dev_uring.c). So it is given one: ours.
        """
        try:
            self._add(queue)
        except OSError:  # the next tick tries again
            return
        if not self._registered.acquire(timeout=1.0):
            return
        if self._slots[-1].registered:
            with contextlib.suppress(OSError):
                self._askers.ask(queue)
        else:
            self._slots.pop()

    def _requests(self) -> dict[Hashable, Callable[[], Request | None]]:
        """What is under way, for :class:`~fusevol.transport.hangs.Hangs`."""

        def look(slot: _Slot, since: float) -> Request | None:
            _size, op, _unique, node, _uid, _gid, pid, _extensions = p.IN_HEADER.unpack_from(slot.header)
            found = self._operations.tell(op, node, slot.payload, pid)
            return found if slot.busy == since else None

        at_work = [(slot, slot.busy) for slot in list(self._slots)]
        return {key: partial(look, *key) for key in at_work if key[1]}

    def _watch(self) -> None:
        """Add a thread to each queue whose threads are all held up. Sleeps while nothing is asked."""
        while not self._closing:
            # while nothing new is asked, what is under way is looked at all the same
            self._alarm.acquire(timeout=LOOK if self.under_way else None)
            quiet = 0
            while quiet < _QUIET_TICKS and not self._closing:
                sleep(_TICK)
                self._hangs.look()
                now = monotonic()
                free: dict[int, bool] = {}
                busy = False
                for slot in list(self._slots):
                    since = slot.busy
                    busy = busy or since > now - LOOK  # for what is older, a thread has been added already
                    held = 0 < since < now - _TICK
                    free[slot.queue] = free.get(slot.queue, False) or (slot.registered and not held)
                for queue, some in free.items():
                    if not some:
                        self._relieve(queue)
                quiet = 0 if busy else quiet + 1
                self._askers.collect()
            self._armed = False
