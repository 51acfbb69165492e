"""Commands that start and look after what runs on a node."""

from __future__ import annotations

from pathlib import Path

from agent.cli.grammar.common import Commands, add


def add_agent(commands: Commands) -> None:
    """``agent``."""
    parser = add(
        commands,
        "agent",
        "serve",
        "run the agent of this node in the foreground",
        "  fusevol agent\n  fusevol agent --state-dir /srv/fusevol --pool fast=/mnt/nvme/fusevol",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration (default: /etc/fusevol/agent.yaml)")
    parser.add_argument("--state-dir", metavar="DIR", help="what must survive a reboot (default: /var/lib/fusevol)")
    parser.add_argument("--run-dir", metavar="DIR", help="sockets and process records (default: /run/fusevol)")
    parser.add_argument(
        "--pool",
        dest="pools",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="a pool of storage; may be repeated (default: default=STATE_DIR/pools/default)",
    )
    parser.add_argument("--transport", metavar="NAME", help="auto, kernel or pyfuse3 (default: auto)")
    parser.add_argument(
        "--io-uring", metavar="WHEN", help="auto, on (switch it on for this machine) or off (default: auto)"
    )
    parser.add_argument("--csi-socket", metavar="URL", help="serve CSI there, such as unix:///run/csi/csi.sock")
    parser.add_argument("--metrics", metavar="IP:PORT", help="serve metrics and probes there (default: not at all)")
    parser.add_argument(
        "--plugin-socket", metavar="PATH", help="serve docker's and podman's volume plugin there (default: not at all)"
    )
    parser.add_argument("--log-level", metavar="LEVEL", help="debug, info, warning or error (default: info)")
    parser.add_argument("--log-format", metavar="FORMAT", help="text, or json: one object a line (default: text)")


def add_keeper(commands: Commands) -> None:
    """``keeper``."""
    parser = add(
        commands,
        "keeper",
        "keep",
        "run the keeper beside the agent, in the foreground: in a container of its own (see the DaemonSet)",
        "  fusevol keeper\n  fusevol keeper --run-dir /run/fusevol --ready-file /tmp/ready",
    )
    parser.add_argument(
        "--run-dir", type=Path, default=Path("/run/fusevol"), metavar="DIR", help="the agent's (default: /run/fusevol)"
    )
    parser.add_argument(
        "--merge-memory", action="store_true", help="have the system merge equal pages of the volume servers"
    )
    parser.add_argument(
        "--ready-file", type=Path, metavar="FILE", help="made when it keeps all mounts that another one kept before"
    )
    parser.add_argument(
        "--log-level", default="info", metavar="LEVEL", help="debug, info, warning or error (default: info)"
    )
    parser.add_argument(
        "--log-format", default="text", metavar="FORMAT", help="text, or json: one object a line (default: text)"
    )


def add_completion(commands: Commands) -> None:
    """``completion``."""
    parser = add(
        commands,
        "completion",
        "completion",
        "print a script that completes fusevol's commands in a shell",
        "  source <(fusevol completion bash)\n"
        "  fusevol completion bash > /usr/share/bash-completion/completions/fusevol",
    )
    parser.add_argument("shell", choices=["bash"], help="which shell")


def add_doctor(commands: Commands) -> None:
    """``doctor``."""
    parser = add(
        commands,
        "doctor",
        "doctor",
        "try what this machine can do, and say what to do about what it cannot (no agent is needed)",
        "  fusevol doctor\n  fusevol doctor --pool fast=/mnt/nvme/fusevol\n  fusevol doctor -o json",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration (default: /etc/fusevol/agent.yaml)")
    parser.add_argument("--state-dir", metavar="DIR", help="where the default pool is (default: /var/lib/fusevol)")
    parser.add_argument(
        "--pool",
        dest="pools",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="a pool to look at; may be repeated (default: those of the configuration)",
    )
    parser.add_argument("-o", "--output", choices=["table", "json"], default="table", help="how to print it")


def add_upgrade(commands: Commands) -> None:
    """``upgrade``."""
    add(
        commands,
        "upgrade",
        "upgrade",
        "move every mounted volume to the installed version, while it is in use",
        "  pip install --upgrade fusevol && fusevol upgrade && systemctl restart fusevol",
    )


def add_flexvolume(commands: Commands) -> None:
    """``flexvolume``."""
    add(
        commands,
        "flexvolume",
        "version",
        "FlexVolume call-outs: init, mount DIR JSON, unmount DIR (for a kubelet; answers one JSON line)",
        "  fusevol flexvolume init\n"
        """  fusevol flexvolume mount /some/dir '{"fusevol/claim":"data","fusevol/size":"64Mi"}'\n"""
        "  fusevol flexvolume unmount /some/dir\n\n"
        "options: fusevol/claim, fusevol/size, fusevol/class, fusevol/pool, fusevol/namespace,\n"
        "         fusevol/kind (persistent|emptyDir|hostPath), fusevol/path, fusevol/type\n"
        "The exit code is 0 whenever a status is answered: a kubelet logs the arguments of a call-out\n"
        "that exits otherwise, secrets included.",
    )


def add_version(commands: Commands) -> None:
    """``version``."""
    parser = add(
        commands,
        "version",
        "version",
        "print the versions of this command and of the agent",
        "  fusevol version --client",
    )
    parser.add_argument("--client", action="store_true", help="do not ask the agent")
