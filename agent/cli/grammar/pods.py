"""Commands on a Pod's containers."""

from __future__ import annotations

import argparse

from agent.cli.grammar.common import Commands, add, file_options, namespace_option, seconds


def add_run(commands: Commands) -> None:
    """``run``."""
    parser = add(
        commands,
        "run",
        "run",
        "run a Pod's containers with podman on its volumes",
        "  fusevol run -f pod.yaml\n  fusevol run -d -f pod.yaml\n"
        "  podman run $(fusevol run --prepare -f pod.yaml) image",
    )
    file_options(parser, required=True)
    namespace_option(parser)
    parser.add_argument("--prepare", action="store_true", help="only mount the volumes and print podman's -v arguments")
    parser.add_argument("-d", "--detach", action="store_true", help="start the containers and return")
    parser.add_argument(
        "--rm", action="store_true", dest="remove", help="delete containers and Pod when they have ended"
    )
    _times(parser)


def add_resume(commands: Commands) -> None:
    """``resume``."""
    text = "run the Pods again whose containers a reboot has ended"
    _times(add(commands, "resume", "resume", text, "  systemctl enable fusevol-pods   # does that at each start"))


def _times(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout", type=seconds, default=60.0, metavar="TIME", help="how long the volumes may take (default: 60s)"
    )
    parser.add_argument(
        "--max-restart-period",
        type=seconds,
        default=300.0,
        metavar="TIME",
        help="the longest time until an ended container is started again; it begins with none, then 10s (default: 5m)",
    )


def _pod_container(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pod", metavar="POD", help="name of a Pod, or pod/NAME")
    namespace_option(parser)
    parser.add_argument("-c", "--container", metavar="NAME", help="which container (default: the first one)")


def add_logs(commands: Commands) -> None:
    """``logs``."""
    parser = add(
        commands,
        "logs",
        "inside",
        "print what a Pod's container has printed",
        "  fusevol logs web\n  fusevol logs web -c sidecar -f --tail 20",
    )
    _pod_container(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="go on printing what comes")
    parser.add_argument("--tail", type=int, metavar="LINES", help="only the last lines")
    parser.add_argument("--since", metavar="TIME", help="only what is newer, such as 10m or an RFC 3339 time")
    parser.add_argument("--timestamps", action="store_true", help="with the time of each line")


def add_exec(commands: Commands) -> None:
    """``exec``."""
    parser = add(
        commands,
        "exec",
        "inside",
        "run a command in a Pod's container",
        "  fusevol exec web -- ls /data\n  fusevol exec -it web -c app -- sh",
    )
    _pod_container(parser)
    parser.add_argument("-i", "--stdin", action="store_true", help="pass the standard input on")
    parser.add_argument("-t", "--tty", action="store_true", help="with a terminal")
    parser.add_argument("words", nargs="+", metavar="COMMAND", help="the command and its arguments, after --")


def add_restart(commands: Commands) -> None:
    """``restart``."""
    parser = add(
        commands,
        "restart",
        "inside",
        "stop a Pod's containers and start them again, on the same volumes",
        "  fusevol restart web\n  fusevol restart web -c app",
    )
    parser.add_argument("pod", metavar="POD", help="name of a Pod, or pod/NAME")
    namespace_option(parser)
    parser.add_argument(
        "-c", "--container", metavar="NAME", help="only this container (default: all but init containers)"
    )
    parser.add_argument("--now", action="store_true", help="kill them instead of asking them to end")
