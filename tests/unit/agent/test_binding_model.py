"""Binding as a whole, against a model: random volumes and claims, in any order, with a kill between any two writes.

The decisions are carried out one write at a time on a dictionary of objects. A kill -9 is that the rest of a decision's
writes never happens; the next look at the object decides anew. What must hold: no volume has two claims, none is
smaller than what was asked for, each choice is the smallest that fits, and in the end all is consistent.
"""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agent.controllers import binding, reclaim
from agent.controllers.view import (
    BIND_COMPLETED,
    CLAIM_PROTECTION,
    VOLUME_PROTECTION,
    Action,
    Delete,
    Discard,
    Event,
    Put,
    View,
    annotations_of,
    finalizers,
    phase,
)
from fusevol import objects, quantity

Obj = dict[str, Any]

# few values: what matters is how they meet
SIZES = st.sampled_from(["1Gi", "2Gi", "3Gi"])
MODES = st.sampled_from([{"ReadWriteOnce"}, {"ReadWriteOnce"}, {"ReadWriteOnce", "ReadOnlyMany"}])
CLASSES = st.sampled_from(["", "", "", "slow"])
ZONES = st.sampled_from(["", "", "", "a"])
POLICIES = st.sampled_from(["Retain", "Delete"])


def size(obj: Obj) -> int:
    """Bytes that a claim asks for, or a volume has."""
    spec = obj["spec"]
    return quantity.parse((spec.get("capacity") or spec["resources"]["requests"])["storage"])


class Binding(RuleBasedStateMachine):
    """Objects and what has been decided on them."""

    def __init__(self) -> None:
        super().__init__()
        self.volumes: dict[str, Obj] = {}
        self.claims: dict[str, Obj] = {}
        self.count = 0

    def view(self) -> View:
        """All objects as they are now."""
        return View(
            volumes=self.volumes,
            claims={("default", name): claim for name, claim in self.claims.items()},
            candidates=list(self.volumes.values()),
        )

    def admitted(self, given: Obj, finalizer: str) -> Obj:
        """An object as the API lets it in."""
        self.count += 1
        new = objects.admit({"apiVersion": "v1", **given})
        new["metadata"].update(uid=f"uid-{self.count}", finalizers=[finalizer])
        return new

    @rule(wanted=st.lists(st.tuples(SIZES, MODES, CLASSES, ZONES, POLICIES, st.sampled_from([False, False, True]))))
    def add_volumes(self, wanted: list[tuple[str, set[str], str, str, str, bool]]) -> None:
        """Volumes, some of them reserved for a claim that may come."""
        for one in wanted:
            self.add_volume(*one)

    def add_volume(self, capacity: str, modes: set[str], name: str, zone: str, policy: str, reserved: bool) -> None:
        """A volume with the first free name."""
        number = next((n for n in range(12) if f"volume-{n}" not in self.volumes), 0)
        spec = {
            "capacity": {"storage": capacity},
            "accessModes": sorted(modes),
            "storageClassName": name,
            "persistentVolumeReclaimPolicy": policy,
            "hostPath": {"path": "/srv"},
        }
        if reserved:
            spec["claimRef"] = {"namespace": "default", "name": f"claim-{number % 4}"}
        labels = {"zone": zone} if zone else {}
        made = {"kind": "PersistentVolume", "metadata": {"name": f"volume-{number}", "labels": labels}, "spec": spec}
        if f"volume-{number}" not in self.volumes:
            self.volumes[f"volume-{number}"] = self.admitted(made, VOLUME_PROTECTION)

    @rule(wanted=st.lists(st.tuples(st.integers(0, 7), SIZES, MODES, CLASSES, ZONES)))
    def add_claims(self, wanted: list[tuple[int, str, set[str], str, str]]) -> None:
        """Claims."""
        for one in wanted:
            self.add_claim(*one)

    def add_claim(self, number: int, request: str, modes: set[str], name: str, zone: str) -> None:
        """A claim, unless there is one of that name."""
        spec: Obj = {
            "accessModes": sorted(modes),
            "resources": {"requests": {"storage": request}},
            "storageClassName": name,
        }
        if zone:
            spec["selector"] = {"matchLabels": {"zone": zone}}
        made = {"kind": "PersistentVolumeClaim", "metadata": {"name": f"claim-{number}"}, "spec": spec}
        if f"claim-{number}" not in self.claims:
            self.claims[f"claim-{number}"] = self.admitted(made, CLAIM_PROTECTION)

    @rule(number=st.integers(0, 7))
    def delete_claim(self, number: int) -> None:
        """A user deletes a claim."""
        self._delete(self.claims, f"claim-{number}")

    @rule(number=st.integers(0, 11))
    def delete_volume(self, number: int) -> None:
        """A user deletes a volume, bound or not."""
        self._delete(self.volumes, f"volume-{number}")

    def _delete(self, where: dict[str, Obj], name: str) -> None:
        obj = where.get(name)
        if obj is None:
            return
        if finalizers(obj):
            where[name] = copy.deepcopy(obj)
            where[name]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        else:
            del where[name]

    @rule(turns=st.lists(st.tuples(st.booleans(), st.integers(0, 11), st.integers(0, 3)), min_size=5))
    def work(self, turns: list[tuple[bool, int, int]]) -> None:
        """Objects have their turns, each killed after some writes."""
        for of_claim, number, writes in turns:
            claim, volume = self.claims.get(f"claim-{number % 8}"), self.volumes.get(f"volume-{number}")
            if of_claim and claim is not None:
                self.carry_out(binding.decide(claim, self.view()), writes)
            elif not of_claim and volume is not None:
                self.carry_out(reclaim.decide(volume, self.view()), writes)

    @rule(writes=st.integers(1, 3))
    def work_on_all(self, writes: int) -> None:
        """The volumes, then the claims."""
        self.work([*((False, n, writes) for n in range(12)), *((True, n, writes) for n in range(8))])

    def carry_out(self, actions: list[Action], writes: int) -> int:
        """Do at most *writes* writes of *actions*; how many there were to do."""
        wanted = [a for a in actions if not isinstance(a, Event)]
        for action in wanted[:writes]:
            match action:
                case Put(obj):
                    self.put(obj)
                case Delete(obj):
                    self._delete(self.volumes, obj["metadata"]["name"])
                case Discard():
                    pass  # of what a pool may have made: there is none
                case _:
                    raise AssertionError(action)
        return len(wanted)

    def put(self, obj: Obj) -> None:
        """Store an object; a choice of a volume is checked before."""
        where = self.volumes if obj["kind"] == "PersistentVolume" else self.claims
        name = obj["metadata"]["name"]
        before = where[name]
        if obj["kind"] == "PersistentVolume" and (ref := obj["spec"].get("claimRef")):
            was = before["spec"].get("claimRef") or {}
            if ref.get("uid") and was.get("name") != ref["name"]:
                self.check_choice(obj, before)
        where[name] = obj
        if obj["metadata"].get("deletionTimestamp") and not finalizers(obj):
            del where[name]

    def check_choice(self, chosen: Obj, before: Obj) -> None:
        """A volume is being given to a claim that it was not reserved for: no other one would have fitted better."""
        claim = self.claims[chosen["spec"]["claimRef"]["name"]]
        assert self.fits(before, claim)
        fitting = [v for v in self.volumes.values() if self.fits(v, claim)]
        best = min(fitting, key=lambda v: (len(v["spec"]["accessModes"]), v["spec"]["accessModes"], size(v)))
        assert size(chosen) == size(best), f"{chosen['metadata']['name']} instead of {best['metadata']['name']}"
        assert chosen["spec"]["accessModes"] == best["spec"]["accessModes"]

    def fits(self, volume: Obj, claim: Obj) -> bool:
        """The rules of volume-semantics 4.6, said once more."""
        wanted = (claim["spec"].get("selector") or {}).get("matchLabels") or {}
        return (
            phase(volume) == "Available"
            and not volume["spec"].get("claimRef")
            and not volume["metadata"].get("deletionTimestamp")
            and size(volume) >= size(claim)
            and set(volume["spec"]["accessModes"]) >= set(claim["spec"]["accessModes"])
            and volume["spec"]["storageClassName"] == claim["spec"]["storageClassName"]
            and wanted.items() <= (volume["metadata"].get("labels") or {}).items()
        )

    @invariant()
    def no_volume_has_two_claims(self) -> None:
        """Of the claims that are bound."""
        taken = [c["spec"]["volumeName"] for c in self.claims.values() if phase(c) == "Bound"]
        assert len(taken) == len(set(taken))

    @invariant()
    def nothing_is_too_small(self) -> None:
        """What a bound claim got is what it asked for, or more."""
        for claim in self.claims.values():
            volume = self.volumes.get(str(claim["spec"].get("volumeName")))
            if phase(claim) == "Bound" and volume is not None:
                assert size(volume) >= size(claim)
                assert set(volume["spec"]["accessModes"]) >= set(claim["spec"]["accessModes"])

    def pass_over_all(self, writes: int = 10**6) -> int:
        """All have a turn, volumes first, the oldest first, until *writes* are done; how many there were to do."""
        done = 0
        for where, decide in ((self.volumes, reclaim.decide), (self.claims, binding.decide)):
            for name in list(where):
                if name in where and done < writes:
                    done += self.carry_out(decide(where[name], self.view()), writes - done)
        return done

    @rule()
    def settle(self) -> None:
        """Left alone, everything comes to rest, and what is bound is bound on both sides."""
        for _ in range(400):
            if not self.pass_over_all():
                break
        else:
            raise AssertionError("it never comes to rest")
        for claim in self.claims.values():
            bound = BIND_COMPLETED in annotations_of(claim)
            assert (phase(claim) in {"Bound", "Lost"}) == bound
            if phase(claim) == "Bound" and not claim["metadata"].get("deletionTimestamp"):
                volume = self.volumes[claim["spec"]["volumeName"]]
                assert volume["spec"]["claimRef"]["uid"] == claim["metadata"]["uid"]
                assert phase(volume) == "Bound"
            elif phase(claim) == "Pending":
                assert not [v for v in self.volumes.values() if self.fits(v, claim)], "a volume that fits is left"
        for volume in self.volumes.values():
            if phase(volume) == "Bound":
                claim = self.claims[volume["spec"]["claimRef"]["name"]]
                assert claim["spec"]["volumeName"] == volume["metadata"]["name"]


VOLUMES = st.lists(st.tuples(SIZES, MODES, CLASSES, ZONES, POLICIES, st.sampled_from([False, False, True])), max_size=6)
CLAIMS = st.lists(st.tuples(st.integers(0, 7), SIZES, MODES, CLASSES, ZONES), max_size=6)


@settings(max_examples=150, deadline=None)
@given(VOLUMES, CLAIMS)
def test_a_kill_changes_no_outcome(volumes: list[Any], claims: list[Any]) -> None:
    """Each claim has the same volume in the end, after whichever write the agent is killed."""

    def outcome(writes: int) -> tuple[int, dict[str, Any], dict[str, Any]]:
        """How much there was to write before the kill, and all objects after the next agent has done the rest."""
        model = Binding()
        model.add_volumes(volumes)
        model.add_claims(claims)
        done = model.pass_over_all(writes)
        model.settle()
        return done, model.claims, model.volumes

    done, *whole = outcome(10**6)

    for writes in range(done):
        assert list(outcome(writes)[1:]) == whole, f"killed after {writes} of {done} writes"


TestBinding = Binding.TestCase
TestBinding.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)
