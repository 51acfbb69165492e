"""``fusevol doctor``: what this machine has of what fusevol can use."""

from __future__ import annotations

import json
from argparse import Namespace

from agent.cli import output
from agent.config import Config
from agent.doctor import findings
from agent.doctor.examination import examine
from fusevol.errors import EXIT_FAILED, EXIT_OK


def command(options: Namespace) -> int:
    """Examine, and print a table or JSON. Exit code 1 if something is missing without which nothing works."""
    given = {"state_dir": options.state_dir, "pool": ",".join(options.pools) or None}
    config = Config.load(options.config, {k: v for k, v in given.items() if v is not None})
    found = examine({name: pool.path for name, pool in config.pools.items()})
    healthy = findings.all_needed(found)
    if options.output == "json":
        print(json.dumps({"ok": healthy, "checks": findings.as_objects(found)}, indent=2))
    else:
        print(output.table(("AREA", "CHECK", "STATE", "FOUND"), [(f.area, f.name, f.state, f.found) for f in found]))
        remedies = [
            (f"{f.name}:" if f.area in _ALONE else f"{f.name} ({f.area}):", f.remedy) for f in found if f.remedy
        ]
        if remedies:
            print("\nWhat to do:\n" + output.table((), remedies))
    if not healthy:
        output.note("Error: What has the state `needed` is missing, and no volume can be mounted without it.")
    return EXIT_OK if healthy else EXIT_FAILED


_ALONE = {"machine", "mount", "programs"}
"""Areas that are there once."""
