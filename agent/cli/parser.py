"""The command line's grammar, on the standard library's argparse: no dependency, and quick to import."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from agent.cli.grammar import nodes, objects, pods, volumes
from agent.cli.grammar.common import Parser, common

_DESCRIPTION = "FUSE-backed volumes with hard quotas and Kubernetes semantics."

_EPILOG = """\
examples:
  fusevol agent &                            start the agent (needs root)
  fusevol apply -f claim.yaml                create or change objects from a file
  fusevol get pvc                            list the claims with what they use
  fusevol mount data /mnt/data               mount the claim `data`
  fusevol run -f pod.yaml                    run a Pod's containers with podman on its volumes

environment: FUSEVOL_SOCKET, FUSEVOL_RUN_DIR, FUSEVOL_STATE_DIR, FUSEVOL_CONFIG, FUSEVOL_PODMAN
exit codes:  0 done, 1 failed, 2 the command line was not understood"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options of *argv*; ``module`` names the module of ``agent.cli`` that carries the command out.

    Raises :class:`UsageError` for what cannot be understood, and ``SystemExit(0)`` after printing help.
    """
    return build().parse_args(list(argv))


def build() -> argparse.ArgumentParser:
    """The whole parser (also what documentation and shell completion are made from)."""
    parser = Parser(
        prog="fusevol", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common(parser, None)
    parser.add_argument("-n", "--namespace", metavar="NS", help="the namespace, for commands that have one")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)
    for command in (
        nodes.add_agent, nodes.add_keeper, objects.add_apply, objects.add_create, objects.add_replace,
        objects.add_get, objects.add_describe, objects.add_delete, objects.add_label, objects.add_annotate,
        objects.add_patch, objects.add_wait, volumes.add_mount, volumes.add_umount, volumes.add_pool,
        volumes.add_trash, pods.add_run, pods.add_logs, pods.add_exec, pods.add_restart, pods.add_resume,
        objects.add_events, objects.add_resize, volumes.add_move, volumes.add_top, objects.add_diff, objects.add_edit,
        objects.add_explain, objects.add_api_resources, nodes.add_completion, nodes.add_doctor, nodes.add_upgrade,
        nodes.add_flexvolume, nodes.add_version,
    ):  # fmt: skip
        command(commands)
    return parser
