"""``fusevol upgrade``."""

from __future__ import annotations

from argparse import Namespace

from agent.cli import output
from agent.client import Client, path_of
from fusevol.errors import EXIT_OK


def command(options: Namespace) -> int:
    """Have all mounted volumes served by the code that is installed now, without a pause for their users."""
    output.note("Moving every mounted volume to the installed version; programs that use them go on.")
    done = Client(options.socket).request("POST", path_of("upgrade"), timeout=None)
    print(f"Moved {done['moved']} mounted volumes from version {done['before']} to {done['after']}.")
    return EXIT_OK
