"""The command line's grammar, on the standard library's argparse: no dependency, and quick to import."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from agent.cli.grammar import (
    FORMATS,
    Commands,
    Parser,
    add,
    common,
    file_options,
    namespace_option,
    seconds,
    which_option,
)

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
        _agent, _keeper, _apply, _create, _replace, _get, _describe, _delete, _label, _annotate, _patch, _wait,
        _mount, _umount, _pool, _trash, _run, _logs, _exec, _restart, _events, _resize, _move, _top,
        _diff, _edit, _explain, _api_resources, _completion, _doctor, _upgrade, _flexvolume, _version,
    ):  # fmt: skip
        command(commands)
    return parser


def _agent(commands: Commands) -> None:
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


def _keeper(commands: Commands) -> None:
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


def _apply(commands: Commands) -> None:
    parser = add(
        commands,
        "apply",
        "apply",
        "create or change objects from files",
        "  fusevol apply -f claim.yaml\n  fusevol apply -f manifests/ -f extra.yaml\n  cat *.yaml | fusevol apply -f -"
        "\n  fusevol apply -f claim.yaml --dry-run=server",
    )
    file_options(parser, required=True)
    namespace_option(parser)
    parser.add_argument(
        "--dry-run",
        choices=["none", "server", "client"],
        default="none",
        help="change nothing; server: the agent says what it would do, or why not; client: only the files are checked",
    )


def _create(commands: Commands) -> None:
    parser = add(
        commands,
        "create",
        "apply",
        "create objects from files; fails for what exists already",
        "  fusevol create -f claim.yaml\n  fusevol create -f - < claim.yaml",
    )
    file_options(parser, required=True)
    namespace_option(parser)


def _replace(commands: Commands) -> None:
    parser = add(
        commands,
        "replace",
        "apply",
        "put what files describe in the place of what exists",
        "  fusevol get sc fusevol -o yaml > class.yaml\n  fusevol replace -f class.yaml",
    )
    file_options(parser, required=True)
    namespace_option(parser)


def _get(commands: Commands) -> None:
    parser = add(
        commands,
        "get",
        "get",
        "show objects as a table, YAML or JSON",
        "  fusevol get pvc\n  fusevol get pvc,pv -A\n  fusevol get pvc/data -o yaml\n  fusevol get pods -l app=web -w\n"
        "  fusevol get pv --sort-by .spec.capacity.storage\n"
        "  fusevol get pools    (also: mounts, servers, events)",
    )
    parser.add_argument("what", nargs="+", metavar="KIND[/NAME]", help="what to show: a kind, then names if wanted")
    namespace_option(parser)
    parser.add_argument("-A", "--all-namespaces", action="store_true", help="objects of every namespace")
    parser.add_argument(
        "-o",
        "--output",
        choices=FORMATS,
        default="table",
        metavar="FORMAT",
        help="table, wide, yaml, json, name, jsonpath='{.spec.volumeName}' or custom-columns=NAME:.metadata.name,...",
    )
    parser.add_argument("-l", "--selector", metavar="SEL", help="only objects with these labels, such as app=web,!old")
    parser.add_argument("-w", "--watch", action="store_true", help="then go on printing what changes")
    parser.add_argument("--sort-by", metavar="FIELD", help="in the order of a field, such as .spec.capacity.storage")


def _describe(commands: Commands) -> None:
    parser = add(
        commands,
        "describe",
        "describe",
        "show all about an object: fields, conditions, use, mounts, events",
        "  fusevol describe pvc data\n  fusevol describe pod/web -n shop\n  fusevol describe mount /mnt/data",
    )
    parser.add_argument("what", nargs="+", metavar="KIND[/NAME]", help="a kind, then names; without names: all of it")
    namespace_option(parser)
    parser.add_argument("-A", "--all-namespaces", action="store_true", help="objects of every namespace")


def _delete(commands: Commands) -> None:
    parser = add(
        commands,
        "delete",
        "removal",
        "delete objects, a Pod together with its podman containers",
        "  fusevol delete pvc data\n  fusevol delete pod web --now\n  fusevol delete -f manifests/ --ignore-not-found",
    )
    parser.add_argument("what", nargs="*", metavar="KIND[/NAME]", help="a kind and names, or several KIND/NAME")
    file_options(parser, required=False)
    namespace_option(parser)
    which_option(parser)
    parser.add_argument(
        "--wait",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="wait until the objects are gone (default) or only ask for it",
    )
    parser.add_argument("--timeout", type=seconds, default=60.0, metavar="TIME", help="wait no longer (default: 60s)")
    parser.add_argument("--ignore-not-found", action="store_true", help="succeed when an object does not exist")
    parser.add_argument(
        "--grace-period",
        type=int,
        metavar="SECONDS",
        help="what a Pod's containers get to end (default: the Pod's terminationGracePeriodSeconds, else 30)",
    )
    parser.add_argument("--now", action="store_const", const=0, dest="grace_period", help="same as --grace-period 0")


def _label(commands: Commands) -> None:
    _marks(commands, "label", "labels", "  fusevol label pvc data app=web\n  fusevol label pvc/data app-")


def _annotate(commands: Commands) -> None:
    _marks(
        commands,
        "annotate",
        "annotations",
        "  fusevol annotate sc fusevol storageclass.kubernetes.io/is-default-class=false --overwrite\n"
        "  fusevol annotate pvc/data note-",
    )


def _marks(commands: Commands, name: str, what: str, examples: str) -> None:
    parser = add(commands, name, "changing", f"set or take away {what} of objects", examples)
    parser.add_argument("what", nargs="+", metavar="WORD", help="KIND NAME... or KIND/NAME..., then KEY=VALUE or KEY-")
    namespace_option(parser)
    which_option(parser)
    parser.add_argument("--overwrite", action="store_true", help="change what has another value, too")


def _patch(commands: Commands) -> None:
    parser = add(
        commands,
        "patch",
        "changing",
        "change fields of an object",
        '  fusevol patch pv NAME -p \'{"spec": {"persistentVolumeReclaimPolicy": "Retain"}}\'\n'
        '  fusevol patch pvc data --type=json -p \'[{"op": "remove", "path": "/metadata/labels/app"}]\'',
    )
    parser.add_argument("what", nargs="+", metavar="KIND[/NAME]", help="a kind and a name, or KIND/NAME")
    namespace_option(parser)
    parser.add_argument("-p", "--patch", metavar="TEXT", help="the patch, as JSON or YAML")
    parser.add_argument("--patch-file", metavar="FILE", help="a file with the patch")
    parser.add_argument(
        "--type",
        choices=["strategic", "merge", "json"],
        default="strategic",
        help="merge: fields are merged, null takes one away (RFC 7396); strategic: as merge, but refused where it "
        "would merge lists of objects; json: a list of operations (RFC 6902)",
    )


def _wait(commands: Commands) -> None:
    parser = add(
        commands,
        "wait",
        "waiting",
        "wait until objects are as they should be, or gone",
        "  fusevol wait pvc/data --for=jsonpath='{.status.phase}'=Bound\n"
        "  fusevol wait pod web --for=condition=Ready --timeout=2m\n  fusevol wait pod --all --for=delete",
    )
    parser.add_argument("what", nargs="+", metavar="KIND[/NAME]", help="a kind, then names, or several KIND/NAME")
    namespace_option(parser)
    which_option(parser)
    parser.add_argument(
        "--for",
        dest="condition",
        required=True,
        metavar="WHAT",
        help="delete, create, condition=NAME[=STATUS] or jsonpath=FIELD[=VALUE]",
    )
    parser.add_argument("--timeout", type=seconds, default=30.0, metavar="TIME", help="no longer (default: 30s)")


def _mount(commands: Commands) -> None:
    parser = add(
        commands,
        "mount",
        "mounts",
        "mount a claim at a directory",
        "  fusevol mount data /mnt/data\n  fusevol mount data /mnt/data -n shop --read-only",
    )
    parser.add_argument("claim", metavar="CLAIM", help="name of a PersistentVolumeClaim")
    parser.add_argument("target", metavar="TARGET", help="directory to mount it at; created when missing")
    namespace_option(parser)
    parser.add_argument("--read-only", action="store_true", help="writes fail with EROFS")


def _umount(commands: Commands) -> None:
    parser = add(
        commands,
        "umount",
        "mounts",
        "undo a mount; succeeds when nothing is mounted there",
        "  fusevol umount /mnt/data",
    )
    parser.add_argument("target", metavar="TARGET", help="the directory given to `fusevol mount`")


def _pool(commands: Commands) -> None:
    parser = add(
        commands,
        "pool",
        "pools",
        "make, grow, delete and look at the pools of storage",
        "  fusevol pool show\n  fusevol pool show default\n  fusevol pool check\n  fusevol pool scan\n"
        "  fusevol pool create fast --device /dev/nvme1n1 --fs xfs\n"
        "  fusevol pool create quick --image /srv/quick.img --size 50Gi --overcommit 1.5\n"
        "  fusevol pool create shared --path /mnt/nfs/fusevol\n"
        "  fusevol pool grow quick --size 80Gi\n  fusevol pool delete quick",
    )
    parser.add_argument(
        "action",
        choices=["show", "check", "scan", "create", "grow", "delete"],
        help="show: capacity and volumes; check: find damage; scan: find volumes that nobody knows; "
        "create, grow, delete: one pool",
    )
    parser.add_argument("pool", nargs="?", metavar="NAME", help="which pool (show, check, scan: only this one)")
    orphans = parser.add_argument_group("scan").add_mutually_exclusive_group()
    # each takes the pool's name, too: argparse refuses an optional word after an option
    orphans.add_argument("--adopt", nargs="?", const="", metavar="NAME", help="make PersistentVolumes, which are kept")
    orphans.add_argument("--purge", nargs="?", const="", metavar="NAME", help="move them to the trash")
    parser.add_argument(
        "--others", action="store_true", help="scan: also what agents of other nodes have made in a pool that is shared"
    )
    where = parser.add_argument_group("create")
    where.add_argument("--path", metavar="DIR", help="in a directory, empty or of a pool, of whatever filesystem")
    where.add_argument("--device", metavar="DEV", help="on a block device, which is formatted if it holds nothing")
    where.add_argument("--image", metavar="FILE", help="in a file of --size, which is made if it is missing")
    where.add_argument("--size", metavar="SIZE", help="of the image file, such as 50Gi (create, grow)")
    where.add_argument("--fs", metavar="FS", help="xfs or btrfs (default: btrfs: its snapshots are instant)")
    where.add_argument(
        "--force",
        action="store_true",
        help="format even what holds data: that is destroyed (delete: forget one that is not there)",
    )
    where.add_argument("--simple-quotas", action="store_true", help="btrfs: cheaper quotas, clones count as nothing")
    where.add_argument("--driver", metavar="NAME", help="how volumes are made (default: what fits the filesystem)")
    where.add_argument("--overcommit", type=float, metavar="X", help="promise at most X times the pool's size")


def _trash(commands: Commands) -> None:
    parser = add(
        commands,
        "trash",
        "trash",
        "show deleted volumes, bring one back, or delete it for ever",
        "  fusevol trash list\n  fusevol trash restore pvc-0123.1 --claim data\n"
        "  fusevol trash purge pvc-0123.1\n  fusevol trash purge --all fast",
    )
    parser.add_argument(
        "action",
        choices=["list", "restore", "purge"],
        help="list: what is there; restore: make a volume and a claim of it again; purge: delete it before its time",
    )
    parser.add_argument(
        "what",
        nargs="?",
        metavar="ENTRY|POOL",
        help="restore, purge: which one, such as pvc-0123.1 or POOL/pvc-0123.1; list: only of this pool",
    )
    parser.add_argument("--claim", metavar="NAME", help="restore: the claim that is made for it")
    namespace_option(parser)
    parser.add_argument("--all", nargs="?", const="", metavar="POOL", help="purge: all that is in the trash, of a pool")


def _run(commands: Commands) -> None:
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


def _logs(commands: Commands) -> None:
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


def _exec(commands: Commands) -> None:
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


def _restart(commands: Commands) -> None:
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


def _events(commands: Commands) -> None:
    parser = add(
        commands,
        "events",
        "events",
        "show what happened to objects",
        "  fusevol events\n  fusevol events --for pvc/data",
    )
    namespace_option(parser)
    parser.add_argument("-A", "--all-namespaces", action="store_true", help="objects of every namespace (default)")
    parser.add_argument("--for", dest="regarding", metavar="KIND/NAME", help="only events of this object")
    parser.add_argument("-o", "--output", choices=["table", "yaml", "json"], default="table", help="how to print them")


def _resize(commands: Commands) -> None:
    parser = add(
        commands,
        "resize",
        "resize",
        "give a claim another size, while it is in use",
        "  fusevol resize data 20Gi\n  fusevol resize data 20Gi -n shop --no-wait",
    )
    parser.add_argument("claim", metavar="CLAIM", help="name of a PersistentVolumeClaim, or pvc/NAME")
    parser.add_argument("size", metavar="SIZE", help="how large it is to be, such as 20Gi")
    namespace_option(parser)
    parser.add_argument(
        "--wait",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="wait until it has that size (default) or only ask for it",
    )
    parser.add_argument("--timeout", type=seconds, default=60.0, metavar="TIME", help="wait no longer (default: 60s)")


def _move(commands: Commands) -> None:
    parser = add(
        commands,
        "move",
        "move",
        "have a claim's volume in another pool, while nothing uses it",
        "  fusevol move data --to fast\n  fusevol move pv/pvc-1b2c --to fast --no-wait",
    )
    parser.add_argument("what", metavar="CLAIM", help="name of a PersistentVolumeClaim, or pvc/NAME, or pv/NAME")
    parser.add_argument("--to", required=True, metavar="POOL", help="the pool that it is to be in")
    namespace_option(parser)
    parser.add_argument(
        "--wait",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="wait until it is there (default) or only ask for it",
    )
    parser.add_argument("--timeout", type=seconds, metavar="TIME", help="wait no longer; it is moved nevertheless")


def _top(commands: Commands) -> None:
    parser = add(
        commands,
        "top",
        "top",
        "show what the mounted volumes use, as it changes",
        "  fusevol top\n  fusevol top --once --sort share\n  fusevol top --interval 10s",
    )
    parser.add_argument("--once", action="store_true", help="print it once and end")
    parser.add_argument(
        "--interval", type=seconds, default=2.0, metavar="TIME", help="how often it is looked at (default: 2s)"
    )
    parser.add_argument(
        "--sort", choices=["used", "share", "name"], default="used", help="the most used, the fullest, or by name"
    )


def _diff(commands: Commands) -> None:
    parser = add(
        commands,
        "diff",
        "diff",
        "show what apply would change (exit code 0: nothing, 1: something, 2: it failed)",
        "  fusevol diff -f claim.yaml\n  cat *.yaml | fusevol diff -f -",
    )
    file_options(parser, required=True)
    namespace_option(parser)


def _edit(commands: Commands) -> None:
    parser = add(
        commands,
        "edit",
        "edit",
        "change an object in the editor that VISUAL or EDITOR names",
        "  fusevol edit pvc data\n  EDITOR=nano fusevol edit sc/fusevol",
    )
    parser.add_argument("what", nargs="+", metavar="KIND[/NAME]", help="a kind and a name, or KIND/NAME")
    namespace_option(parser)


def _api_resources(commands: Commands) -> None:
    add(commands, "api-resources", "kinds", "show the kinds of objects", "  fusevol api-resources")


def _explain(commands: Commands) -> None:
    parser = add(
        commands,
        "explain",
        "explain",
        "tell the fields of a kind",
        "  fusevol explain pvc\n  fusevol explain pod.spec.volumes.emptyDir\n  fusevol explain sc --recursive",
    )
    parser.add_argument("what", metavar="KIND[.FIELD...]", help="a kind, or a field of it")
    parser.add_argument("--recursive", action="store_true", help="all fields below, without their texts")


def _completion(commands: Commands) -> None:
    parser = add(
        commands,
        "completion",
        "completion",
        "print a script that completes fusevol's commands in a shell",
        "  source <(fusevol completion bash)\n"
        "  fusevol completion bash > /usr/share/bash-completion/completions/fusevol",
    )
    parser.add_argument("shell", choices=["bash"], help="which shell")


def _doctor(commands: Commands) -> None:
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


def _upgrade(commands: Commands) -> None:
    add(
        commands,
        "upgrade",
        "upgrade",
        "move every mounted volume to the installed version, while it is in use",
        "  pip install --upgrade fusevol && fusevol upgrade && systemctl restart fusevol",
    )


def _flexvolume(commands: Commands) -> None:
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


def _version(commands: Commands) -> None:
    parser = add(
        commands,
        "version",
        "version",
        "print the versions of this command and of the agent",
        "  fusevol version --client",
    )
    parser.add_argument("--client", action="store_true", help="do not ask the agent")
