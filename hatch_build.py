"""What a build makes before it packs: the messages of agent/csi/csi.proto in Python, and their types for mypy."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROTO = "agent/csi/csi.proto"
MADE = ("agent/csi/csi_pb2.py", "agent/csi/csi_pb2.pyi")


class GeneratedMessages(BuildHookInterface):  # type: ignore[type-arg]  # its parameter is hatchling's business
    """Has protoc write the messages beside their source, for a wheel as for an editable installation."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - hatchling's signature
        """Generate; what git ignores has to be named to get into the wheel."""
        from grpc_tools import protoc  # noqa: PLC0415 - only a build has it

        include = Path(protoc.__file__).parent / "_proto"
        words = ["protoc", f"--proto_path={self.root}", f"--proto_path={include}"]
        status = protoc.main([*words, f"--python_out={self.root}", f"--pyi_out={self.root}", PROTO])
        if status != 0:
            sys.exit(f"protoc failed on {PROTO} with status {status}.")
        build_data["artifacts"] += MADE
