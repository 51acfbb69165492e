"""What the commands of the command line share: the parser whose errors are ours, and options that several have."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TypeAlias

from fusevol.errors import UsageError


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ours: one sentence, exit code 2."""

    _mixing = False
    """Whether options and arguments are being parsed one after the other, which calls :meth:`parse_known_args`."""

    def error(self, message: str) -> NoReturn:
        sentence = message[:1].upper() + message[1:]
        raise UsageError(f"{sentence.rstrip('.')}; see `{self.prog} --help`.")

    def parse_known_args(  # type: ignore[override]  # argparse has overloads that say the same
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Also what argparse leaves over where options stand between arguments: ``get pvc -n NAMESPACE NAME``."""
        found, rest = super().parse_known_args(args, namespace)
        words = [] if args is None else list(args)
        if self._mixing or self._subparsers is not None or "--" in words or all(w.startswith("-") for w in rest):
            return found, rest
        self._mixing = True
        try:
            return self.parse_known_intermixed_args(words)
        finally:
            self._mixing = False


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"  # noqa: SLF001 - argparse has no public name for it


def common(parser: argparse.ArgumentParser, default: object) -> None:
    """Options that may stand before and after the command's name (``--namespace``: :func:`namespace_option`)."""
    parser.add_argument("--socket", type=Path, metavar="FILE", default=default, help="the agent's unix socket")
    parser.add_argument(
        "--debug", action="store_true", default=default or False, help="show a traceback when something fails"
    )


def add(commands: Commands, name: str, module: str, text: str, examples: str, **defaults: object) -> Parser:
    """One more command, carried out by *module*."""
    parser: Parser = commands.add_parser(
        name,
        help=text,
        description=f"{text[:1].upper()}{text[1:]}.",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common(parser, argparse.SUPPRESS)
    parser.set_defaults(module=module, name=name, **defaults)
    return parser


def namespace_option(parser: argparse.ArgumentParser) -> None:
    """For a command; what stands before its name counts as well."""
    text = "the namespace (default: default)"
    parser.add_argument("-n", "--namespace", metavar="NS", default=argparse.SUPPRESS, help=text)


def file_options(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument(
        "-f",
        "--filename",
        dest="files",
        action="append",
        default=[],
        required=required,
        metavar="FILE",
        help="a YAML or JSON file, a directory of such files, or - for the standard input; may be repeated",
    )


def which_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--all", action="store_true", dest="everything", help="all objects of the kind in the namespace"
    )
    parser.add_argument("-l", "--selector", metavar="SEL", help="those with these labels, such as app=web,!old")


class Formats(tuple[str, ...]):
    """The formats of ``get``; templates among them, whose text is the user's."""

    __slots__ = ()

    def __contains__(self, text: object) -> bool:
        """Whether *text* is a format, or begins as one with a template."""
        word, equals, template = str(text).partition("=")
        return word in tuple(self) and bool(equals and template) == (word in TEMPLATES)


TEMPLATES = ("jsonpath", "custom-columns")
FORMATS = Formats(("table", "wide", "yaml", "json", "name", *TEMPLATES))


def seconds(text: str) -> float:
    """A time: plain seconds, or with a unit as kubectl has it (``30``, ``1.5s``, ``2m``, ``1h``)."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    unit = next((u for u in units if text.endswith(u)), "")
    try:
        value = float(text.removesuffix(unit)) * units.get(unit, 1.0)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 30s or 2m")
    return value
