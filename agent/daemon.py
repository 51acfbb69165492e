"""The agent's process: brings its parts up in order, serves, and leaves the mounts alone when it ends.

Order of the start: lock and socket (so that two agents never share a state), pools (leftovers of interrupted work are
swept), objects, living volume servers (adopted), mounts that should exist, controllers, then "ready". The API answers
from the moment the objects are read.
"""

from __future__ import annotations

import contextlib
import copy
import datetime as dt
import logging
import resource
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import trio

from agent import logs, merging
from agent.api import serving
from agent.api.app import Api
from agent.api.listener import listen
from agent.config import PROVISIONER, Config
from agent.controllers.effects import Effects
from agent.controllers.manager import Controllers
from agent.controllers.pods import PodController
from agent.controllers.queue import WorkQueue
from agent.controllers.view import DEFAULT_CLASS, being_deleted
from agent.events import Recorder
from agent.hangs import HangWatch
from agent.hazard import Hazards, Recoveries
from agent.identity import identify
from agent.keeper import KeeperLink
from agent.metrics import Metrics
from agent.moves import Moves
from agent.notify import live, notify, watchdog_period
from agent.plugin.driver import Driver
from agent.plugin.server import serve as serve_plugin
from agent.poolbook import PoolBook
from agent.pools import Pools
from agent.poolwatch import PoolWatch
from agent.probes import Probes
from agent.salvage import Salvage
from agent.shares import Shares
from agent.steps import Step, no_step
from agent.store import Key, Store, now
from agent.supervisor import KeeperSupervisor
from agent.tally import Requests
from agent.volumes.attachments import Attachment, Attachments
from agent.volumes.byhand import ByHand
from agent.volumes.mounter import Mounter
from agent.volumes.node import Node
from fusevol import objects
from fusevol.errors import AlreadyExistsError, FusevolError, NotFoundError, UnavailableError
from fusevol.files import locked
from fusevol.transport.kernel import parameter

Obj = dict[str, Any]
_FIRST_CLASS = "default-class-made"
START_PATIENCE = 30.0
"""Seconds that the agent's start waits for mounts: it then goes on without those that hang."""
WORKERS = 32
"""Mounts that are made again at the same time."""

log = logging.getLogger(__name__)


async def serve(config: Config, *, step: Step = no_step) -> None:
    """Run an agent until SIGTERM or SIGINT. *step* is called after each step of the work.

    Raises :class:`UnavailableError` when another agent uses the directories, and what opening pools and store raises.
    """
    logs.set_up(config.log_level, config.log_format)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # half a dozen descriptors are kept of each mount
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for directory, mode in ((config.state_dir, 0o755), (config.run_dir, 0o755), (config.socket.parent, 0o755)):
        _make(directory, mode)
    state_dir = config.state_dir
    with locked(state_dir / "agent.lock", lambda pid: _used(pid, state_dir)), listen(config.socket) as listener:
        try:
            if config.merge_memory:
                merging.switch_on()
            if config.io_uring == "on":
                _switch_on_io_uring()
            recoveries = Recoveries()
            holder = identify(config.state_dir, config.node_name, config.lease_s)
            pools = await Pools.open(
                config.pools,
                book=PoolBook(config.state_dir),
                patience=config.patience.give_up,
                recoveries=recoveries,
                step=step,
                holder=holder,
            )
            store = Store.open(config.state_dir / "agent.db")
            try:
                with _single_error():
                    async with trio.open_nursery() as nursery:
                        await _run(config, pools, recoveries, store, listener, nursery, step)
            finally:
                store.close()
        finally:
            config.socket.unlink(missing_ok=True)


async def _run(
    config: Config,
    pools: Pools,
    recoveries: Recoveries,
    store: Store,
    listener: socket.socket,
    nursery: trio.Nursery,
    step: Step,
) -> None:
    events = Recorder(store.database)

    async def mount_again(name: str) -> float | None:
        return await mounter.heal(name)

    def died(name: str) -> None:
        mounter.died(name)
        heal.add(name)

    heal: WorkQueue[str] = WorkQueue("mount", mount_again, workers=WORKERS)

    hazards = Hazards(patience=config.patience.give_up, recoveries=recoveries)
    keeper = KeeperLink(config.run_dir, starts=config.keeper == "agent", merge=config.merge_memory)
    nursery.start_soon(keeper.run)

    async def tell_of_server(name: str, reason: str, what: str, warning: bool) -> None:
        await mounter.tell_of_server(name, reason, what, warning)

    supervisor = KeeperSupervisor(config.run_dir / "servers", keeper, nursery, died, tell=tell_of_server, step=step)

    async def tell(row: Attachment, reason: str, message: str, warning: bool) -> None:
        regarding = _owner(store, row)
        if regarding is not None:
            await (events.warning if warning else events.normal)(regarding, reason, message)
        log.info("%s: %s", reason, message)

    def attachment_changed(row: Attachment) -> None:
        controllers.attachment_changed(row)

    mounter = Mounter(
        directory=config.state_dir / "mounts",
        servers=config.run_dir / "servers",
        attachments=Attachments(store.database),
        pools=pools,
        supervisor=supervisor,
        transport=config.transport,
        io_uring=config.io_uring != "off",
        tell=tell,
        changed=attachment_changed,
        hazards=hazards,
        patience=config.patience,
        step=step,
    )
    node = Node.here(config.node_name, config.state_dir, config.node_labels)
    pod_controller = PodController(
        store=store,
        events=events,
        pools=pools,
        mounter=mounter,
        hazards=hazards,
        root=config.state_dir / "pods",
        node=node,
        step=step,
    )
    shares = Shares(store=store, pools=pools, directory=config.run_dir / "ceph")
    shares.attach_all()
    pools.learn = shares.attach_all
    effects = Effects(
        store=store,
        events=events,
        pools=pools,
        shares=shares,
        mounter=mounter,
        provisioner=config.provisioners[0],
        step=step,
    )
    moves = Moves(store=store, events=events, pools=pools, mounter=mounter, step=step)
    controllers = Controllers(
        store=store,
        mounter=mounter,
        pod_controller=pod_controller,
        effects=effects,
        moves=moves,
        provisioners=config.provisioners,
        node=node,
        heal=heal,
    )
    recoveries.follow(controllers.hurry)
    by_hand = ByHand(store=store, events=events, pools=pools, mounter=mounter, hazards=hazards, node=node)
    salvage = Salvage(store=store, pools=pools, shares=shares, mounter=mounter, provisioner=config.provisioners[0])
    requests = Requests()
    metrics = Metrics(pools=pools, mounter=mounter, supervisor=supervisor, requests=requests, queues=controllers.queues)
    probes = Probes(pools=pools, supervisor=supervisor, metrics=metrics)
    api = Api(
        store=store,
        events=events,
        pools=pools,
        mounter=mounter,
        by_hand=by_hand,
        supervisor=supervisor,
        salvage=salvage,
        moves=moves,
        probes=probes,
        requests=requests,
    )

    hangs = HangWatch(supervisor=supervisor, mounter=mounter, hazards=hazards, tell=tell, patience=config.patience)
    nursery.start_soon(supervisor.run)
    stop = trio.Event()
    nursery.start_soon(_stop_on_signal, stop, probes, nursery)
    await _first_class(store, pools)
    await _after_boot(store)
    (config.state_dir / "mounts").mkdir(mode=0o755, exist_ok=True)
    (config.state_dir / "pods").mkdir(mode=0o750, exist_ok=True)
    await supervisor.adopt()
    for name in await mounter.restore():
        heal.add(name)
    await _soon(nursery, pod_controller.remove_strangers)
    staying = {pod["metadata"]["uid"] for pod in store.list("Pod") if not being_deleted(pod)}
    await _soon(nursery, partial(_remount, mounter, pod_controller, heal, staying))
    await nursery.start(controllers.run)
    nursery.start_soon(pools.empty_trash)
    nursery.start_soon(hangs.run)
    nursery.start_soon(shares.watch, mounter.end_all)
    watch = PoolWatch(store=store, events=events, pools=pools, end=mounter.end_all, recovered=recoveries.announce)
    nursery.start_soon(watch.run)
    if config.csi is not None:
        from agent.csi.server import serve as serve_csi  # noqa: PLC0415 - grpcio takes 15 MiB, and most do without

        csi = partial(
            serve_csi,
            config.csi,
            pools=pools,
            mounter=mounter,
            supervisor=supervisor,
            hazards=hazards,
            requests=requests,
        )
        await nursery.start(partial(csi, nursery=nursery, node=config.node_name, ready=lambda: probes.ready, step=step))
    if config.plugin is not None:
        driver = Driver(
            directory=config.state_dir / "plugin",
            store=store,
            pools=pools,
            mounter=mounter,
            provisioners=config.provisioners,
            step=step,
        )
        await nursery.start(serve_plugin, config.plugin, driver, requests, stop.wait)
    if config.metrics is not None:
        await nursery.start(probes.serve, config.metrics, stop.wait)
    await nursery.start(_serve_api, api, listener, stop, nursery)
    probes.ready = True
    log.info("Ready on %s.", config.socket)
    notify("READY=1")
    if (period := watchdog_period()) is not None:
        nursery.start_soon(live, period)


async def _serve_api(
    api: Api,
    listener: socket.socket,
    stop: trio.Event,
    nursery: trio.Nursery,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    await serving.serve(api.app(), listener, stop.wait, task_status=task_status)
    log.info("Ending; mounts stay as they are.")
    notify("STOPPING=1")
    nursery.cancel_scope.cancel()


async def _stop_on_signal(stop: trio.Event, probes: Probes, nursery: trio.Nursery) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            stop.set()
            if not probes.ready:
                # whatever the start waits for (a volume that is being counted, for example) is taken up by the next one
                log.info("Ending before the start was over.")
                nursery.cancel_scope.cancel()


async def _soon(nursery: trio.Nursery, work: Callable[[], Awaitable[None]]) -> None:
    """Do *work*; when that takes long since something hangs, it goes on in the background."""
    done = trio.Event()

    async def do() -> None:
        await work()
        done.set()

    nursery.start_soon(do)
    with trio.move_on_after(START_PATIENCE):
        await done.wait()


async def _remount(mounter: Mounter, pod_controller: PodController, heal: WorkQueue[str], staying: set[str]) -> None:
    """Make the mounts again that should be there and are not (the machine or a server went down meanwhile).

    *staying*: uids of the Pods that are not being deleted. What others have left is about to be undone.
    """
    at_once: dict[str, trio.CapacityLimiter] = {}  # for each pool: one may hang

    async def again(row: Attachment) -> None:
        async with at_once.setdefault(row.pool, trio.CapacityLimiter(WORKERS)):
            try:
                await mounter.again(row)
                log.info("Mounted again at %s.", row.target)
            except (FusevolError, OSError) as e:
                log.warning("What belongs at %s cannot be mounted: %s", row.target, e)
                heal.add(row.mount_id or row.target)

    missing = [row for row in await mounter.missing() if not row.pod or row.pod in staying]
    pods = {row.pod for row in missing if row.pod}
    await pod_controller.unready(pods)
    async with trio.open_nursery() as nursery:
        for row in missing:
            if not row.dependent:
                nursery.start_soon(again, row)
    await pod_controller.restore(pods)


async def _after_boot(store: Store) -> None:
    """No container lives through a reboot, and nobody has told of their ends."""
    text = await trio.Path("/proc/stat").read_text()
    boot = dt.datetime.fromtimestamp(int(text.partition("\nbtime ")[2].split()[0]), dt.UTC)
    for pod in store.list("Pod"):
        if objects.containers.lost(copy.deepcopy(pod), boot, now()):
            with contextlib.suppress(NotFoundError):
                await store.change(
                    objects.key(pod),
                    lambda current: objects.containers.lost(current, boot, now()),
                    uid=pod["metadata"]["uid"],
                )


async def _first_class(store: Store, pools: Pools) -> None:
    """The class that an empty state begins with; made once, so that it stays deleted when somebody deletes it."""
    if store.note(_FIRST_CLASS) is not None:
        return
    made = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "fusevol", "annotations": {DEFAULT_CLASS: "true"}},
        "provisioner": PROVISIONER,
        "parameters": {"pool": pools.preferred},
        "reclaimPolicy": "Delete",
        "allowVolumeExpansion": True,
        "volumeBindingMode": "Immediate",
    }
    with contextlib.suppress(AlreadyExistsError):
        await store.create(objects.admit(made))
    await store.remember(_FIRST_CLASS, "yes")


def _owner(store: Store, row: Attachment) -> Obj | None:
    """The object that an attachment's events are about: its claim, else its Pod."""
    if row.claim:
        return store.find(Key("PersistentVolumeClaim", row.namespace, row.claim))
    return next((p for p in store.list("Pod") if p["metadata"]["uid"] == row.pod), None)


@contextlib.contextmanager
def _single_error() -> Iterator[None]:
    """Let the sentence of a nursery's one :class:`FusevolError` reach the user, without the group around it."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if isinstance(error, FusevolError):
            raise error from error.__cause__
        raise


def _switch_on_io_uring() -> None:
    """It is as well to serve volumes without it: what cannot be is said, and is no reason to serve none."""
    try:
        parameter.switch_on()
    except UnavailableError as e:
        log.warning("%s", e)


def _make(directory: Path, mode: int) -> None:
    try:
        directory.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as e:
        raise UnavailableError(f"The directory {directory} cannot be made: {e.strerror}.") from e


def _used(pid: str, state_dir: Path) -> UnavailableError:
    """Two agents on one state would undo each other's work."""
    return UnavailableError(f"Another agent (pid {pid}) uses {state_dir}: stop it, or choose another --state-dir.")
