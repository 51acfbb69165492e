"""What goes on at this node, for Prometheus.

Everything is asked for at a scrape, all at once, and nothing is waited for longer than a few seconds: a pool that hangs
is told by ``fusevol_pool_answers 0``, and its numbers are missing, which is Prometheus' way to say that they are not
known. The library that writes the text takes 14 MiB of memory, so it is imported by the first scrape.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import trio

import fusevol
from agent.controllers.queue import WorkQueue
from agent.pools import Pools
from agent.supervisor import Supervisor
from agent.tally import BOUNDS, Durations, Requests
from agent.volumes.mounter import Mounter
from fusevol.errors import FusevolError
from fusevol.pool import PoolCapacity

if TYPE_CHECKING:
    from prometheus_client.core import Metric

Obj = dict[str, Any]
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""The text format that every Prometheus reads."""
PATIENCE: Final = 4.0
"""Seconds that a scrape may take; who gives up first is Prometheus after 10 s, where nothing else is said."""
_AT_ONCE: Final = 64
"""Volume servers that are asked at the same time."""

_VOLUME: Final = ("volume", "pool", "namespace", "claim", "pod")
_importing = threading.Lock()

log = logging.getLogger(__name__)


class ServerSeen(NamedTuple):
    """A volume server at a scrape."""

    labels: tuple[str, ...]
    """The values of the labels of its volume."""
    takeovers: int
    status: Obj | None
    """None: it has not answered."""


@dataclass
class Seen:
    """What a scrape has found."""

    ready: bool
    keeper: bool
    attachments: int
    pools: dict[str, PoolCapacity | None] = field(default_factory=dict)
    """None: it has not answered."""
    servers: list[ServerSeen] = field(default_factory=list)
    requests: Mapping[tuple[str, str, int], int] = field(default_factory=dict)
    calls: Mapping[tuple[str, str, str], Durations] = field(default_factory=dict)
    queues: Mapping[str, int] = field(default_factory=dict)
    provisioning: Mapping[tuple[str, str], Durations] = field(default_factory=dict)


class Metrics:
    """For the trio loop."""

    def __init__(
        self,
        *,
        pools: Pools,
        mounter: Mounter,
        supervisor: Supervisor,
        requests: Requests,
        queues: Sequence[WorkQueue[Any]],
    ) -> None:
        self._pools = pools
        self._mounter = mounter
        self._supervisor = supervisor
        self._requests = requests
        self._queues = queues
        self.ready = False
        """Whether the agent's start is over."""

    async def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        seen = await self.look()
        return await trio.to_thread.run_sync(render, seen)

    async def look(self) -> Seen:
        """Ask everybody."""
        seen = Seen(
            ready=self.ready,
            keeper=self._supervisor.keeper is not None,
            attachments=len(list(self._mounter.attachments)),
            requests=dict(self._requests.found),
            calls=dict(self._requests.took),
            queues={queue.name: queue.depth for queue in self._queues},
            provisioning=dict(self._pools.provisioning.found),
            pools=dict.fromkeys(self._pools.names),
        )
        answers: dict[str, Obj] = {}
        limiter = trio.CapacityLimiter(_AT_ONCE)

        async def ask_pool(name: str) -> None:
            try:
                seen.pools[name] = await self._pools.glance(name, lambda pool: pool.capacity(), PATIENCE)
            except (FusevolError, OSError) as e:
                log.debug("Pool %s is missing from the metrics: %s", name, e)

        async def ask_server(name: str) -> None:
            try:
                async with limiter:
                    answers[name] = await self._supervisor.ask(name, {"op": "status"}, seconds=PATIENCE)
            except FusevolError as e:
                log.debug("Volume server %s is missing from the metrics: %s", name, e)

        servers = dict(self._supervisor.servers)
        with trio.move_on_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                for name in seen.pools:
                    nursery.start_soon(ask_pool, name)
                for name in servers:
                    nursery.start_soon(ask_server, name)
        seen.servers = [ServerSeen(self._labels(n), s.restarts, answers.get(n)) for n, s in servers.items()]
        return seen

    def _labels(self, name: str) -> tuple[str, ...]:
        row = next(iter(self._mounter.attachments.of_mount(name)), None)
        return (name, "", "", "", "") if row is None else (row.volume, row.pool, row.namespace, row.claim, row.pod)


def render(seen: Seen) -> bytes:
    """The text of what was seen. For a worker thread: the first call imports the library."""
    with _importing:
        from prometheus_client import generate_latest  # noqa: PLC0415 - see above
        from prometheus_client.core import CollectorRegistry  # noqa: PLC0415
        from prometheus_client.registry import Collector  # noqa: PLC0415

    class Found(Collector):
        def collect(self) -> Iterable[Metric]:
            return families(seen)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Found())
    return generate_latest(registry)


def families(seen: Seen) -> list[Metric]:
    """What was seen, as metrics."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily  # noqa: PLC0415

    found: list[Metric] = []

    def gauge(
        name: str, text: str, labels: Sequence[str], values: Iterable[tuple[Sequence[str], float | None]]
    ) -> None:
        family = GaugeMetricFamily(f"fusevol_{name}", text, labels=labels)
        for given, value in values:
            if value is not None:
                family.add_metric(given, float(value))
        found.append(family)

    gauge("build_info", "The agent's version.", ["version"], [([fusevol.__version__], 1)])
    gauge("ready", "Whether the agent's start is over.", [], [([], seen.ready)])
    gauge("keeper_up", "Whether a keeper lives, which starts volume servers.", [], [([], seen.keeper)])
    gauge("attachments", "Targets that are mounted, or shall be.", [], [([], seen.attachments)])

    pools = sorted(seen.pools.items())
    gauge(
        "pool_answers", "Whether the pool answers.", ["pool"], [([n], found is not None) for n, found in pools]
    )  # fmt: skip
    for word, text in (
        ("total", "capacity_bytes Size of the pool's filesystem."),
        ("available", "available_bytes What is free there for who is not root."),
        ("provisioned", "provisioned_bytes Sum of the limits of its volumes."),
        ("volumes", "volumes Volumes in the pool."),
    ):
        name, _, help_text = text.partition(" ")
        gauge(
            f"pool_{name}", help_text, ["pool"], [([n], getattr(c, word)) for n, c in pools if c is not None]
        )  # fmt: skip

    servers = sorted(seen.servers, key=lambda s: s.labels)
    for name, help_text in (
        ("used_bytes", "Allocated space that a mounted volume uses, as du counts it."),
        ("limit_bytes", "The most that it may use."),
        ("used_inodes", "Inodes that a mounted volume uses."),
        ("limit_inodes", "The most that it may use."),
    ):
        gauge(
            f"volume_{name}", help_text, _VOLUME, [(s.labels, _number(s.status, "usage", name)) for s in servers]
        )  # fmt: skip

    gauge(
        "server_answers",
        "Whether the volume server answers.",
        _VOLUME,
        [(s.labels, s.status is not None) for s in servers],
    )
    for section, word, name, help_text in (
        ("stats", "under_way", "requests_under_way", "Requests that it is carrying out."),
        ("stats", "threads", "threads", "Threads that carry out requests."),
        ("stuck", "count", "requests_hanging", "Requests that have waited for storage too long (hangs.reportAfter)."),
        ("stuck", "oldest", "oldest_hang_seconds", "How long the first of them has waited."),
    ):
        values = [(s.labels, _number(s.status, section, word)) for s in servers]
        gauge(f"server_{name}", help_text, _VOLUME, values)
    for word, help_text in (
        ("operations", "Operations of programs that this server has begun."),
        ("refused", "Those for which there was no room: by the volume's limits, or since its pool is full."),
    ):
        counter = CounterMetricFamily(f"fusevol_server_{word}", help_text, labels=_VOLUME)
        for server in servers:
            if (value := _number(server.status, "stats", word)) is not None:
                counter.add_metric(server.labels, value)
        found.append(counter)
    takeovers = CounterMetricFamily(
        "fusevol_server_takeovers", "How often another process went on in the place of one that ended.", labels=_VOLUME
    )
    for server in servers:
        takeovers.add_metric(server.labels, server.takeovers)
    found.append(takeovers)

    requests = CounterMetricFamily(
        "fusevol_api_requests", "Requests that the agent's API has answered.", labels=["method", "operation", "code"]
    )
    for (method, operation, code), count in sorted(seen.requests.items()):
        requests.add_metric([method, operation, str(code)], count)
    found.append(requests)

    depths = [([name], depth) for name, depth in seen.queues.items()]
    gauge("queue_depth", "Objects that controllers have to look at.", ["queue"], depths)
    calls = HistogramMetricFamily(
        "fusevol_call_seconds", "How long calls took, by door and answer.", labels=["door", "operation", "code"]
    )
    for words, durations in sorted(seen.calls.items()):
        calls.add_metric(words, _buckets(durations), durations.sum)
    found.append(calls)

    provisioning = HistogramMetricFamily(
        "fusevol_provisioning_seconds", "How long making a volume took.", labels=["pool", "result"]
    )
    for (pool, result), durations in sorted(seen.provisioning.items()):
        provisioning.add_metric([pool, result], _buckets(durations), durations.sum)
    found.append(provisioning)
    return found


def _number(status: Obj | None, section: str, word: str) -> float | None:
    """A number of a status, if it is there: servers of other versions may say less."""
    value = ((status or {}).get(section) or {}).get(word)
    return value if isinstance(value, int | float) else None


def _buckets(durations: Durations) -> list[tuple[str, float]]:
    """Prometheus counts in each class what is in those below it, too."""
    total, found = 0, []
    for bound, count in zip([*map(str, BOUNDS), "+Inf"], durations.counts, strict=True):
        total += count
        found.append((bound, float(total)))
    return found
