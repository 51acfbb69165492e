"""A keeper whose servers fail, hang or die on command (:mod:`tests.support.faulty_server`).

Started as ``python -m tests.support.faulty_keeper``; commands are in the directory ``faults`` beside the served ones.
"""

from __future__ import annotations

import sys

from fusevol.keeper.process import main
from fusevol.server import process
from tests.support.faulty_server import FaultyFileSystem

if __name__ == "__main__":
    process.FileSystem = FaultyFileSystem  # type: ignore[misc]
    sys.exit(main(sys.argv[1:]))
