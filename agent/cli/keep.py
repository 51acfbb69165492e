"""``fusevol keeper``: a keeper beside the agent, in the foreground."""

from __future__ import annotations

from argparse import Namespace

import trio

from agent import logs
from agent.keeping import keep
from fusevol.errors import EXIT_OK


def command(options: Namespace) -> int:
    """Keep the mounts until told to end."""
    logs.set_up(options.log_level, options.log_format)
    trio.run(keep, options.run_dir.absolute(), options.ready_file)
    return EXIT_OK
