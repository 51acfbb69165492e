"""``fusevol api-resources``: the kinds of objects that there are here."""

from __future__ import annotations

from argparse import Namespace

from agent.cli import output
from fusevol import objects
from fusevol.errors import EXIT_OK


def command(_options: Namespace) -> int:
    """Print them, without asking the agent."""
    rows = [
        [k.plural, ",".join(k.short), k.api_version, str(k.namespaced).lower(), k.name]
        for k in sorted(objects.KINDS, key=lambda k: k.plural)
    ]
    print(output.table(["NAME", "SHORTNAMES", "APIVERSION", "NAMESPACED", "KIND"], rows))
    return EXIT_OK
