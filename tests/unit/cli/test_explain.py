"""``fusevol explain``: complete, and of the same fields as the validation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.cli import explain
from fusevol import objects
from fusevol.errors import NotFoundError
from fusevol.objects import podspec, sources, volume

_ROOT = Path(__file__).parents[3]
_SIMPLE = {"string", "integer", "boolean", "quantity", "time"}
TYPES = explain.types()


def unknown(value: Any, type_name: str, path: str) -> list[str]:
    """Fields of *value* that its type does not have."""
    if isinstance(value, list):
        return [f for v in value for f in unknown(v, type_name, path)]
    if type_name not in TYPES or not isinstance(value, dict):
        return []
    found = []
    for name, inner in value.items():
        entry = TYPES[type_name].fields.get(name)
        if entry is None:
            found.append(f"{path}.{name}")
        elif not entry.type.startswith("{}"):
            found += unknown(inner, entry.inner, f"{path}.{name}")
    return found


def test_every_kind_and_type_is_described() -> None:
    """Each kind is a type, each type is described and used, no text is empty."""
    used = {e.inner for t in TYPES.values() for e in t.fields.values()}

    assert {k.name for k in objects.KINDS} <= set(TYPES)
    assert used - set(TYPES) == _SIMPLE
    assert set(TYPES) - used == {k.name for k in objects.KINDS}
    assert [n for n, t in TYPES.items() if not t.text or not all(e.text for e in t.fields.values())] == []


def test_all_sources_are_described() -> None:
    """What a Pod can mount here, and every source of a PersistentVolume that has rules, is there."""
    unchecked = set(sources.UNCHECKED)

    assert set(objects.pod.SERVED) <= set(TYPES["PodVolume"].fields)
    assert set(volume.SOURCES) - unchecked <= set(TYPES["VolumeSpec"].fields)
    assert set(TYPES["PodVolume"].fields) - {"name"} <= set(podspec.SOURCES)


@pytest.mark.parametrize("directory", ["manifests", "docs", "demo"])
def test_fields_of_our_own_objects(directory: str) -> None:
    """Every field of the objects that the project shows can be explained."""
    found = []
    names = {k.name for k in objects.KINDS}
    for file in sorted((_ROOT / directory).rglob("*")):
        if "templates" in file.parts:  # of a Helm chart: no YAML until it is rendered, and test_chart.py does that
            continue
        if file.suffix in {".yaml", ".yml"}:
            texts = [file.read_text()]
        elif file.suffix == ".md":
            texts = re.findall(r"```yaml\n(.*?)```", file.read_text(), re.DOTALL)
        else:
            continue
        for text in texts:
            for obj in yaml.safe_load_all(text):
                if isinstance(obj, dict) and obj.get("kind") in names:
                    found += unknown(obj, obj["kind"], obj["kind"])

    assert found == []


def test_pages() -> None:
    """A kind by any of its names, a field with its type, what must be given, and all fields below."""
    kind = list(explain.page("pvc"))
    field = list(explain.page("po.spec.volumes.emptyDir.sizeLimit"))
    tree = list(explain.page("pvc.spec", recursive=True))

    assert kind[:2] == ["KIND:     PersistentVolumeClaim", "VERSION:  v1"]
    assert "  spec <Object> -required-" in kind
    assert field[3:] == ["FIELD:    sizeLimit <quantity>", "", "a hard limit; none without it"]
    assert "      storage <quantity> -required-" in tree


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("frob", "no kind"),
        ("pvc.spec.size", "has no field .size.: it has accessModes"),
        ("pvc.kind.x", "it has no fields"),
    ],
)
def test_what_there_is_not(what: str, says: str) -> None:
    """A wrong word is told with the right ones."""
    with pytest.raises(NotFoundError, match=says):
        list(explain.page(what))
