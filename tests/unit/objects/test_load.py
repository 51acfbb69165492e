"""YAML and JSON in, with mistakes told by file, line and column."""

from __future__ import annotations

import pytest

from fusevol import objects
from fusevol.errors import InvalidError


def refusal(text: str) -> str:
    """The sentence with which *text* is refused."""
    with pytest.raises(InvalidError) as e:
        objects.load(text, "a.yaml")
    assert "\n" not in e.value.message
    return e.value.message


def test_several_documents_lists_and_empty_ones() -> None:
    """Documents come in order, lists are opened, empty documents are nothing; JSON is YAML."""
    text = """\ufeff---
# nothing
---
kind: Pod
---
kind: List
items:
- kind: PersistentVolume
- {kind: List, items: [{kind: Pod, n: 2}]}
---
apiVersion: v1
kind: PersistentVolumeClaimList
items: [{metadata: {name: a}}]
---
{"kind": "StorageClass", "a": [1, 2.5, true, null, "x"]}
"""

    assert objects.load(text, "x") == [
        {"kind": "Pod"},
        {"kind": "PersistentVolume"},
        {"kind": "Pod", "n": 2},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "a"}},
        {"kind": "StorageClass", "a": [1, 2.5, True, None, "x"]},
    ]


def test_nothing_at_all() -> None:
    """An empty text has no objects, and neither has an empty list."""
    assert objects.load("", "x") == objects.load("kind: List\nitems:\n", "x") == []


def test_times_stay_text_and_keys_become_text() -> None:
    """An object is JSON: a time is a string, and so is every key."""
    (found,) = objects.load("kind: Pod\nt: 2019-12-29T09:09:14Z\nd: 2019-12-29\n1: a\ntrue: b\n", "x")

    assert found == {"kind": "Pod", "t": "2019-12-29T09:09:14Z", "d": "2019-12-29", "1": "a", "true": "b"}


def test_aliases_and_merges() -> None:
    """Anchors work, each use is a value of its own, and a mapping's own keys win over merged ones."""
    (found,) = objects.load("kind: Pod\na: &a {x: 1, y: 2}\nb: *a\nc: {<<: *a, y: 3}\n", "x")
    found["b"]["x"] = 9

    assert found == {"kind": "Pod", "a": {"x": 1, "y": 2}, "b": {"x": 9, "y": 2}, "c": {"x": 1, "y": 3}}


BOMB = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kind: [Pod\n", "a.yaml, line 2, column 1: while parsing a flow sequence expected ',' or ']'"),
        ("a: 1\n\tb: 2\n", "a.yaml, line 2, column 1: while scanning for the next token found character '\\t'"),
        ("a: b: c\n", "a.yaml, line 1, column 5: mapping values are not allowed here."),
        ("kind: Pod\na: 1\na: 2\n", 'a.yaml, line 3, column 1: the key "a" is given twice: remove one.'),
        ("kind: Pod\na: &a [*a]\n", "a.yaml, line 2, column 4: an alias contains itself"),
        ("kind: Pod\n" + BOMB, "unfolds to more than 1000000 values"),
        ("kind: Pod\na: " + "[" * 300 + "]" * 300, "nested too deeply"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("kind: Pod\na: *b\n", "a.yaml, line 2, column 4: found undefined alias 'b'"),
        ("kind: Pod\na: !!python/object:os.system x\n", "a.yaml, line 2, column 4"),
        ("kind: Pod\na: !!set {x}\n", "the tag tag:yaml.org,2002:set is not allowed"),
        ("kind: Pod\na: !!binary aGk=\n", "quote it"),
        ("kind: Pod\na: !!int x\n", '"x" cannot be read as int: quote it'),
        ("kind: Pod\na: .nan\n", "JSON does not know"),
        ("kind: Pod\na: " + "9" * 5000, "quote it"),
        ("kind: Pod\na: 0x" + "f" * 5000, "quote it"),
        ("kind: Pod\n[1]: a\n", "a key must be a string"),
        ("kind: Pod\na: {<<: 1}\n", "only mappings can be merged"),
        ("kind: Pod\n\na: \x01\n", "a.yaml, line 3, column 4: the character U+0001 is not allowed in YAML."),
        ("- a\n- b\n", "a.yaml, line 1: this is not an object"),
        ("kind: Pod\n---\nhello\n", "a.yaml, line 3: this is not an object"),
        ("metadata: {name: a}\n", "a.yaml, line 1: the object has no kind"),
        ("kind: 7\n", "a.yaml, line 1: the object has no kind"),
        ("kind: List\nitems: 7\n", "the items of a List must be a list"),
        ("kind: List\nitems: [7]\n", "a.yaml, line 1 (an item of the List): this is not an object"),
        (
            "[czh@n167 ~]$ k get pv\napiVersion: v1\n",
            'a.yaml, line 1: "[czh@n167 ~]$ k get pv" is a command: remove it',
        ),
        ("$ kubectl get pv -o yaml\nkind: Pod\n", 'a.yaml, line 1: "$ kubectl get pv -o yaml" is a command'),
        ("me@host:~/x$ kubectl get pv\nkind: Pod\n", 'a.yaml, line 1: "me@host:~/x$ kubectl get pv" is a command'),
    ],
    ids=lambda t: t[:30] if isinstance(t, str) else None,
)
def test_refusals(text: str, says: str) -> None:
    """A mistake in the text is one sentence with the place."""
    assert says in refusal(text)
