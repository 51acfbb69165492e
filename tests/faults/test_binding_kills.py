"""kill -9 of the agent between any two writes of binding: every claim gets what it would have got."""

from __future__ import annotations

import contextlib

import pytest
import trio

from agent.store import Store
from fusevol import objects
from fusevol.errors import FusevolError
from tests.support import api
from tests.support.mortal import MortalAgent
from tests.support.polling import eventually

pytestmark = pytest.mark.root

VOLUMES = [
    api.volume("a-large", "3Gi"),
    api.volume("b-other", "1Gi", storageClassName="slow"),
    api.volume("c-small", "1Gi"),
    api.volume("d-kept", "1Gi", claimRef={"namespace": "default", "name": "b-last"}),
    api.volume("e-middle", "2Gi"),
]
CLAIMS = [
    api.claim("z-first", "1Gi", storageClassName=""),
    api.claim("m-second", "1Gi", storageClassName=""),
    api.claim("b-last", "1Gi", storageClassName=""),
    api.claim("a-third", "2Gi", storageClassName=""),
    api.claim("k-fourth", "2Gi", storageClassName=""),
]
"""The order of their names is not that in which they come."""
OUTCOME = {
    "z-first": "c-small",
    "m-second": "e-middle",
    "b-last": "d-kept",
    "a-third": "a-large",
    "k-fourth": "",
}


def apply(agent: MortalAgent) -> None:
    """Everything, one after the other; what is there already stays as it is."""
    for obj in (*VOLUMES, *CLAIMS):
        api.apply(agent, obj)


def bound(agent: MortalAgent) -> dict[str, str]:
    """Which volume each claim has."""
    return {c["metadata"]["name"]: c["spec"].get("volumeName", "") for c in api.everything(agent, "pvc")}


def settled(agent: MortalAgent) -> bool:
    """Whether each claim has its phase, and both sides agree."""
    claims, volumes = api.everything(agent, "pvc"), api.everything(agent, "pv")
    states = {c["metadata"]["name"]: c.get("status", {}).get("phase") for c in claims}
    owners = {
        v["metadata"]["name"]: v["spec"]["claimRef"]["name"] for v in volumes if v["status"].get("phase") == "Bound"
    }
    wanted = {volume: claim for claim, volume in OUTCOME.items() if volume}
    return states == {c: "Bound" if v else "Pending" for c, v in OUTCOME.items()} and owners == wanted


def clear(agent: MortalAgent) -> None:
    """Nothing is left."""
    for kind in ("pvc", "pv"):
        for obj in api.everything(agent, kind):
            api.delete(agent, kind, obj["metadata"]["name"])
        eventually(lambda k=kind: not api.everything(agent, k), 20.0, what=f"every {kind} is gone")


def outcome(agent: MortalAgent) -> dict[str, str]:
    """Which volume each claim has, in the end."""
    eventually(lambda: settled(agent), 20.0, what=lambda: f"claims have settled: {bound(agent)}")
    return bound(agent)


def test_killed_while_they_come(agent: MortalAgent) -> None:
    """The smallest that fits for the oldest first, and the same after a kill at each write, if the rest comes later."""
    agent.forget()
    apply(agent)
    outcomes = [outcome(agent)]
    steps = agent.steps()
    for number, step in enumerate(steps):
        clear(agent)
        agent.doom(step, steps[: number + 1].count(step))
        with contextlib.suppress(FusevolError):
            apply(agent)
        agent.died()
        agent.start()
        apply(agent)
        outcomes.append(outcome(agent))

    assert len(steps) == len(VOLUMES) + 2 * len(CLAIMS) - 1
    assert [o for o in outcomes if o != OUTCOME] == []


async def store_all(agent: MortalAgent) -> None:
    """Write all objects into the store of an agent that is not running, unseen by any controller."""
    store = Store.open(agent.state / "agent.db")
    for obj in (*VOLUMES, *CLAIMS):
        await store.create(objects.admit(obj))
    store.close()


def test_killed_when_all_are_there(agent: MortalAgent) -> None:
    """The order in which they came is kept by the store: an agent that finds all of it, and each one after a kill at
    each write, decides as one that saw them come."""
    agent.kill()
    trio.run(store_all, agent)
    whole = (agent.state / "agent.db").read_bytes()
    agent.forget()
    agent.start()
    outcomes = [outcome(agent)]
    steps = agent.steps()
    for number, step in enumerate(steps):
        agent.kill()
        for rest in agent.state.glob("agent.db-*"):
            rest.unlink()
        (agent.state / "agent.db").write_bytes(whole)
        agent.doom(step, steps[: number + 1].count(step))
        agent.launch()
        agent.died()
        agent.start()
        outcomes.append(outcome(agent))

    assert len(steps) >= 2 * len(OUTCOME)
    assert [o for o in outcomes if o != OUTCOME] == []
