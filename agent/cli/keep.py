"""``fusevol keeper``: a keeper beside the agent, in the foreground."""

from __future__ import annotations

from argparse import Namespace
from functools import partial

import trio

from agent import logs, merging
from agent.keeping import keep
from fusevol.errors import EXIT_OK


def command(options: Namespace) -> int:
    """Keep the mounts until told to end."""
    logs.set_up(options.log_level, options.log_format)
    if options.merge_memory:
        merging.switch_on()
    trio.run(partial(keep, options.run_dir.absolute(), options.ready_file, merge=options.merge_memory))
    return EXIT_OK
