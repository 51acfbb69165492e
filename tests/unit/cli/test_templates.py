"""Paths of fields, templates of ``get``, and what ``wait`` waits for."""

from __future__ import annotations

from typing import Any

import pytest

from agent.cli import fieldpaths, templates, waiting
from fusevol.errors import UsageError

Obj = dict[str, Any]
POD: Obj = {
    "metadata": {"name": "web", "labels": {"a.b/c": "x"}},
    "spec": {"containers": [{"name": "one"}, {"name": "two"}], "paused": True},
    "status": {"conditions": [{"type": "Ready", "status": "False"}, {"type": "VolumesReady", "status": "True"}]},
}
LIST: Obj = {"items": [POD, {"metadata": {"name": "db"}}]}


@pytest.mark.parametrize(
    ("path", "steps"),
    [
        (".metadata.name", ["metadata", "name"]),
        ("{.spec.capacity.storage}", ["spec", "capacity", "storage"]),
        ("status.conditions[0].type", ["status", "conditions", 0, "type"]),
        (".metadata.labels['a.b/c']", ["metadata", "labels", "a.b/c"]),
        ("{.items[*].metadata.name}", ["items", None, "metadata", "name"]),
        ("{.metadata.labels.*}", ["metadata", "labels", None]),
        ("{$.metadata}", ["metadata"]),
        ("{.}", []),
    ],
)
def test_paths(path: str, steps: list[fieldpaths.Step]) -> None:
    """A field is written as kubectl has it."""
    assert fieldpaths.steps(path) == steps


@pytest.mark.parametrize("path", ["", "{}", ".a..b", ".a[", "{.a", ".a[?(@.b)]", ".a[-1]"])
def test_what_is_no_path(path: str) -> None:
    """Anything else is refused with an example."""
    with pytest.raises(UsageError, match="is no field: write for example"):
        fieldpaths.steps(path)


@pytest.mark.parametrize(
    ("template", "value", "printed"),
    [
        ("{.metadata.name}", POD, "web"),
        (".metadata.name", POD, "web"),
        ("name: {.metadata.name}!", POD, "name: web!"),
        ("{.spec.containers[*].name}", POD, "one two"),
        ("{.spec.containers[1]}", POD, '{"name":"two"}'),
        ("{.spec.paused}{.spec.missing}", POD, "true"),
        ('{.metadata.name}{"\\t"}{"}"}', POD, "web\t}"),
        ('{range .items[*]}{.metadata.name}{"\\n"}{end}', LIST, "web\ndb\n"),
        ("{range .items[*]}{range .spec.containers[*]}{.name},{end};{end}", LIST, "one,two,;;"),
    ],
)
def test_templates(template: str, value: Obj, printed: str) -> None:
    """Fields, texts and ranges; what is missing is printed as nothing."""
    assert templates.render(templates.parse(template), value) == printed


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (" ", "is empty"),
        ("{range .items[*]}{.x}", "without an {end}"),
        ("{.x}{end}", "without a {range}"),
        ("{.x", "a brace"),
        ('{"\\"}', "a brace"),
        ("{.items[?(@.a==1)].b}", "is no field"),
    ],
)
def test_templates_that_are_none(template: str, says: str) -> None:
    """Each is refused with what is wrong with it."""
    with pytest.raises(UsageError, match=says.replace("{", r"\{").replace("}", r"\}")):
        templates.parse(template)


def test_columns() -> None:
    """Headers and fields; several values are joined, and none is said."""
    found = templates.columns("NAME:.metadata.name,ALL:.spec.containers[*].name,NO:.x")

    assert [(c.header, c.cell(POD)) for c in found] == [("NAME", "web"), ("ALL", "one,two"), ("NO", "<none>")]
    with pytest.raises(UsageError, match="is no column"):
        templates.columns("NAME")


@pytest.mark.parametrize(
    ("text", "obj", "met"),
    [
        ("delete", None, True),
        ("delete", POD, False),
        ("create", None, False),
        ("create", POD, True),
        ("condition=Ready", POD, False),
        ("condition=ready=false", POD, True),
        ("condition=VolumesReady", POD, True),
        ("condition=Other", POD, False),
        ("jsonpath={.metadata.name}=web", POD, True),
        ("jsonpath={.metadata.name}=x", POD, False),
        ("jsonpath={.metadata.name}", POD, True),
        ("jsonpath={.metadata.uid}", POD, False),
    ],
)
def test_conditions(text: str, obj: Obj | None, met: bool) -> None:
    """What kubectl can wait for."""
    assert waiting.condition(text)[0](obj) is met


@pytest.mark.parametrize("text", ["", "ready", "condition", "condition=", "jsonpath"])
def test_conditions_that_are_none(text: str) -> None:
    """Anything else is refused with the list."""
    with pytest.raises(UsageError, match="nothing to wait for"):
        waiting.condition(text)
