"""``fusevol version``."""

from __future__ import annotations

from argparse import Namespace

import fusevol
from agent.client import Client
from fusevol.errors import EXIT_OK


def command(options: Namespace) -> int:
    """Print the version of this command, and of the agent unless ``--client`` is given."""
    print(f"Client: {fusevol.__version__}", flush=True)
    if not options.client:
        print(f"Agent:  {Client(options.socket).request('GET', '/version')['version']}")
    return EXIT_OK
