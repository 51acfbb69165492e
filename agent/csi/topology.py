"""Where volumes can be reached: a pool is a directory of its node, so on that node only. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Final

from agent.csi import csi_pb2 as pb

KEY: Final = "topology.fusevol.io/node"
_VALUE: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", re.ASCII)


def segment(node: str) -> str:
    """The node's name, where a label can have it as its value; else what stands for it."""
    if _VALUE.fullmatch(node):
        return node
    return f"node-{hashlib.sha256(node.encode()).hexdigest()[:32]}"


def of(node: str) -> pb.Topology:
    """The topology of what is on *node*."""
    return pb.Topology(segments={KEY: segment(node)})


def matches(node: str, wanted: pb.Topology) -> bool:
    """Whether *node* is in *wanted*: an empty one is everywhere, a key that this driver does not know is nowhere."""
    here = {KEY: segment(node)}
    return all(here.get(key.lower()) == value for key, value in wanted.segments.items())


def reachable(node: str, required: pb.TopologyRequirement) -> bool:
    """Whether a volume on *node* is what is *required*: in one of the requisite topologies, if there are any."""
    allowed: Sequence[pb.Topology] = required.requisite or required.preferred
    return not allowed or any(matches(node, one) for one in allowed)
