"""``label``, ``annotate`` and ``patch``: what they make of an object."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest

from agent.cli import changing
from fusevol.errors import ConflictError, InvalidError, UsageError

Obj = dict[str, Any]
OBJ: Obj = {"kind": "X", "metadata": {"name": "x", "labels": {"a": "1"}}, "spec": {"list": ["b"], "deep": {"c": 1}}}


class Agent:
    """An agent's API with one object, which others change *rivals* times in between."""

    def __init__(self, obj: Obj, rivals: int = 0) -> None:
        self.obj = obj
        self.rivals = rivals

    def request(self, method: str, _path: str, body: Obj | None = None) -> Obj:
        """GET or PUT."""
        if method == "PUT" and body is not None:
            if self.rivals:
                self.rivals -= 1
                self.obj = {**self.obj, "metadata": {**self.obj["metadata"], "rival": self.rivals}}
                raise ConflictError("it was changed")
            self.obj = body
        return self.obj


def patched(patch: str, how: str = "strategic") -> Obj:
    """The object after a patch."""
    options = Namespace(patch=patch, patch_file=None, type=how)
    changed: Obj = changing._patcher(options)({**OBJ})
    return changed


@pytest.mark.parametrize(
    ("words", "objects", "marks"),
    [
        (["pvc", "a", "k=v"], ["pvc", "a"], {"k": "v"}),
        (["pvc/a", "k=v=w", "a.b/c-"], ["pvc/a"], {"k": "v=w", "a.b/c": None}),
        (["pvc", "k="], ["pvc"], {"k": ""}),
    ],
)
def test_words(words: list[str], objects: list[str], marks: dict[str, str | None]) -> None:
    """Objects first, then what they get."""
    assert changing._divided(words) == (objects, marks)


@pytest.mark.parametrize("words", [["pvc", "a"], ["pvc", "a=1", "b"], ["pvc", "a=1", "a-"]])
def test_words_that_say_nothing(words: list[str]) -> None:
    """Nothing to change, a name after the changes, one thing twice."""
    with pytest.raises(UsageError):
        changing._divided(words)


def test_marks() -> None:
    """Set, kept, taken away; another value only with --overwrite."""
    change = changing._marker("labels", {"a": None, "b": "2"}, overwrite=False)
    assert change({"metadata": {"labels": {"a": "1", "c": "3"}}})["metadata"]["labels"] == {"b": "2", "c": "3"}
    with pytest.raises(ConflictError, match="already has a value"):
        change({"metadata": {"labels": {"b": "1"}}})
    over = changing._marker("labels", {"b": "2"}, overwrite=True)
    assert over({"metadata": {"labels": {"b": "1"}}})["metadata"]["labels"] == {"b": "2"}
    nothing = changing._marker("annotations", {"b": None}, overwrite=False)
    assert nothing({"metadata": {}}) == {"metadata": {}}


@pytest.mark.parametrize(
    ("patch", "how", "spec"),
    [
        ('{"spec": {"deep": {"d": 2}}}', "strategic", {"list": ["b"], "deep": {"c": 1, "d": 2}}),
        ("spec: {list: [x], deep: null}", "merge", {"list": ["x"]}),
        ('[{"op": "add", "path": "/spec/list/-", "value": "z"}]', "json", {"list": ["b", "z"], "deep": {"c": 1}}),
    ],
)
def test_patches(patch: str, how: str, spec: Obj) -> None:
    """Each kind does what its specification says."""
    assert patched(patch, how)["spec"] == spec
    assert OBJ["spec"] == {"list": ["b"], "deep": {"c": 1}}


@pytest.mark.parametrize(
    ("patch", "how", "error"),
    [
        ("{", "merge", UsageError),
        ("[1]", "merge", UsageError),
        ('{"spec": {"list": [{"name": "x"}]}}', "strategic", UsageError),
        ('{"spec": {"$patch": "delete"}}', "strategic", UsageError),
        ('{"a": 1}', "json", UsageError),
        ('[{"op": "fly", "path": "/a"}]', "json", UsageError),
        ('[{"op": "remove", "path": "/nothing"}]', "json", InvalidError),
        ('[{"op": "test", "path": "/kind", "value": "Y"}]', "json", InvalidError),
    ],
)
def test_patches_that_are_refused(patch: str, how: str, error: type[Exception]) -> None:
    """What is no patch, what would need merging by name, and what does not fit."""
    with pytest.raises(error):
        patched(patch, how)


def test_rivals_lose_nothing() -> None:
    """When somebody else is faster the change is made to what that has left; not for ever."""
    pvc = {"kind": "PersistentVolumeClaim", "apiVersion": "v1", "metadata": {"name": "x", "namespace": "default"}}
    change = changing._marker("labels", {"b": "2"}, overwrite=False)
    agent = Agent(pvc, rivals=2)
    changed = changing.rewrite(agent, pvc, change)  # type: ignore[arg-type]
    assert changed
    assert agent.obj["metadata"] == {"name": "x", "namespace": "default", "rival": 0, "labels": {"b": "2"}}
    assert not changing.rewrite(agent, agent.obj, change)  # type: ignore[arg-type]
    with pytest.raises(ConflictError):
        changing.rewrite(Agent(pvc, rivals=9), pvc, change)  # type: ignore[arg-type]
    with pytest.raises(InvalidError, match="cannot be changed"):
        changing.rewrite(agent, agent.obj, lambda obj: {**obj, "kind": "Pod"})  # type: ignore[arg-type]
