"""Where volumes can be reached: a pool is a directory of its node, so on that node only. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from agent.csi import csi_pb2 as pb
from agent.volumes.node import TOPOLOGY, segment


def of(node: str) -> pb.Topology:
    """The topology of what is on *node*."""
    return pb.Topology(segments={TOPOLOGY: segment(node)})


def matches(node: str, wanted: pb.Topology) -> bool:
    """Whether *node* is in *wanted*: an empty one is everywhere, a key that this driver does not know is nowhere."""
    here = {TOPOLOGY: segment(node)}
    return all(here.get(key.lower()) == value for key, value in wanted.segments.items())


def reachable(node: str, required: pb.TopologyRequirement) -> bool:
    """Whether a volume on *node* is what is *required*: in one of the requisite topologies, if there are any."""
    allowed: Sequence[pb.Topology] = required.requisite or required.preferred
    return not allowed or any(matches(node, one) for one in allowed)
