"""``fusevol agent``: the agent of this node, in the foreground."""

from __future__ import annotations

from argparse import Namespace

import trio

from agent.config import Config
from agent.daemon import serve
from fusevol.errors import EXIT_OK


def command(options: Namespace) -> int:
    """Run the agent until it is told to end."""
    given = {
        "state_dir": options.state_dir,
        "run_dir": options.run_dir,
        "socket": str(options.socket) if options.socket else None,
        "pool": ",".join(options.pools) or None,
        "log_level": options.log_level,
        "log_format": options.log_format,
        "transport": options.transport,
        "io_uring": options.io_uring,
        "csi_socket": options.csi_socket,
        "metrics": options.metrics,
        "plugin_socket": options.plugin_socket,
    }
    config = Config.load(options.config, {k: v for k, v in given.items() if v is not None})
    trio.run(serve, config)
    return EXIT_OK
