"""An emptyDir on huge pages: a hugetlbfs of its own, of the size of page that the Pod asks for (volume-semantics 1.5).
Pure."""

from __future__ import annotations

from typing import Any, Final

from agent.volumes.node import Node
from fusevol import quantity
from fusevol.errors import InvalidError

Obj = dict[str, Any]

MEDIUM: Final = "HugePages"
MODE: Final = 0o777
PAGE_SIZE: Final = "pagesize="
"""How the mount options begin."""
_RESOURCE: Final = "hugepages-"


def is_medium(medium: str) -> bool:
    """Whether it means huge pages."""
    return medium == MEDIUM or medium.startswith(f"{MEDIUM}-")


def options(pod: Obj, medium: str, limit: int | None, *, mode: int, gid: int | None, node: Node) -> str:
    """The mount options; *limit* in bytes, of which as many as are whole pages can be used.

    Raises :class:`InvalidError` for a size of page that the Pod does not ask for, or the machine does not have.
    """
    page = _page_size(pod, medium)
    if page not in node.huge_pages:
        known = ", ".join(quantity.format_bytes(n) for n in sorted(node.huge_pages)) or "none at all"
        raise InvalidError(f"the node has no huge pages of {quantity.format_bytes(page)}: it has {known}")
    words = [f"{PAGE_SIZE}{page}", f"mode={mode if gid is None else mode | 0o2770:o}"]
    if limit is not None:
        words.append(f"size={limit // page * page}")
    if gid is not None:
        words.append(f"gid={gid}")
    return ",".join(words)


def _page_size(pod: Obj, medium: str) -> int:
    """Bytes of the pages that *medium* means in this Pod."""
    asked = _requested(pod)
    if medium == MEDIUM:
        if not asked:
            raise InvalidError("hugePages storage requested, but there is no resource request for huge pages.")
        if len(asked) > 1:
            raise InvalidError(
                "medium HugePages is ambiguous, since the Pod requests multiple huge page sizes: name one, such as "
                "HugePages-2Mi."
            )
        return next(iter(asked))
    text = medium.removeprefix(f"{MEDIUM}-")
    try:
        wanted = quantity.parse(text)
    except InvalidError as e:
        raise InvalidError(f"unknown storage medium {medium}") from e
    if wanted not in asked:
        raise InvalidError(
            f"medium {medium}: the Pod's containers request no huge pages of that size: add {_RESOURCE}{text} to the "
            "limits of one."
        )
    return wanted


def _requested(pod: Obj) -> set[int]:
    """The sizes of the pages that the Pod's containers request."""
    spec = pod["spec"]
    found = set()
    for container in [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]:
        resources = container.get("resources") or {}
        for name in {**(resources.get("limits") or {}), **(resources.get("requests") or {})}:
            if str(name).startswith(_RESOURCE):
                found.add(quantity.parse(str(name).removeprefix(_RESOURCE)))
    return found
