"""Commands on objects, as kubectl has them."""

from __future__ import annotations

import argparse

from agent.cli.grammar.common import FORMATS, Commands, add, file_options, namespace_option, seconds, which_option


def add_apply(commands: Commands) -> None:
    """``apply``."""
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


def add_create(commands: Commands) -> None:
    """``create``."""
    parser = add(
        commands,
        "create",
        "apply",
        "create objects from files; fails for what exists already",
        "  fusevol create -f claim.yaml\n  fusevol create -f - < claim.yaml",
    )
    file_options(parser, required=True)
    namespace_option(parser)


def add_replace(commands: Commands) -> None:
    """``replace``."""
    parser = add(
        commands,
        "replace",
        "apply",
        "put what files describe in the place of what exists",
        "  fusevol get sc fusevol -o yaml > class.yaml\n  fusevol replace -f class.yaml",
    )
    file_options(parser, required=True)
    namespace_option(parser)


def add_get(commands: Commands) -> None:
    """``get``."""
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


def add_describe(commands: Commands) -> None:
    """``describe``."""
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


def add_delete(commands: Commands) -> None:
    """``delete``."""
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


def add_label(commands: Commands) -> None:
    """``label``."""
    _marks(commands, "label", "labels", "  fusevol label pvc data app=web\n  fusevol label pvc/data app-")


def add_annotate(commands: Commands) -> None:
    """``annotate``."""
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


def add_patch(commands: Commands) -> None:
    """``patch``."""
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


def add_wait(commands: Commands) -> None:
    """``wait``."""
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


def add_events(commands: Commands) -> None:
    """``events``."""
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


def add_resize(commands: Commands) -> None:
    """``resize``."""
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


def add_diff(commands: Commands) -> None:
    """``diff``."""
    parser = add(
        commands,
        "diff",
        "diff",
        "show what apply would change (exit code 0: nothing, 1: something, 2: it failed)",
        "  fusevol diff -f claim.yaml\n  cat *.yaml | fusevol diff -f -",
    )
    file_options(parser, required=True)
    namespace_option(parser)


def add_edit(commands: Commands) -> None:
    """``edit``."""
    parser = add(
        commands,
        "edit",
        "edit",
        "change an object in the editor that VISUAL or EDITOR names",
        "  fusevol edit pvc data\n  EDITOR=nano fusevol edit sc/fusevol",
    )
    parser.add_argument("what", nargs="+", metavar="KIND[/NAME]", help="a kind and a name, or KIND/NAME")
    namespace_option(parser)


def add_explain(commands: Commands) -> None:
    """``explain``."""
    parser = add(
        commands,
        "explain",
        "explain",
        "tell the fields of a kind",
        "  fusevol explain pvc\n  fusevol explain pod.spec.volumes.emptyDir\n  fusevol explain sc --recursive",
    )
    parser.add_argument("what", metavar="KIND[.FIELD...]", help="a kind, or a field of it")
    parser.add_argument("--recursive", action="store_true", help="all fields below, without their texts")


def add_api_resources(commands: Commands) -> None:
    """``api-resources``."""
    add(commands, "api-resources", "kinds", "show the kinds of objects", "  fusevol api-resources")
