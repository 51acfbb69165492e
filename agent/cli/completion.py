"""``fusevol completion bash``: a script made from the commands' own grammar, so that it knows all of them.

Names of objects are asked of the agent when Tab is pressed; without an agent there are none.
"""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Iterator

from agent.cli import parser
from agent.cli.listings import LISTINGS
from fusevol import objects
from fusevol.errors import EXIT_OK

_NAMED = {"get", "describe", "delete", "edit", "label", "annotate", "patch", "wait"}
"""Commands that take a kind and names."""
_CLAIMS = {"mount", "move", "resize"}
_PODS = {"logs", "exec", "restart"}

_SCRIPT = """\
# bash completion of fusevol: source <(fusevol completion bash)
_fusevol_names() {
    fusevol get "$1" -o name 2>/dev/null | sed 's,^[^/]*/,,'
}

_fusevol() {
    local word=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} command= kind= choices= index skip=
    for ((index = 1; index < COMP_CWORD; index++)); do
        if [[ -n $skip ]]; then skip=; continue; fi
        case "$command ${COMP_WORDS[index]}" in
@VALUES@
            *\\ -*) ;;
            *) if [[ -z $command ]]; then command=${COMP_WORDS[index]}
               elif [[ -z $kind ]]; then kind=${COMP_WORDS[index]}; fi ;;
        esac
    done
    COMPREPLY=()
    if [[ -n $skip ]]; then
        case "$command $previous" in
@CHOICES@
            *) return ;;  # a file, or what only the user knows
        esac
        COMPREPLY=($(compgen -W "$choices" -- "$word"))
        return
    fi
    case "$command" in
        "") choices="@COMMANDS@" ;;
@COMMAND_CASES@
    esac
    case "$command" in
        @NAMED@)
            if [[ $word != -* ]]; then
                if [[ -z $kind ]]; then choices="@KINDS@"
                else choices=$(_fusevol_names "$kind"); fi
            fi ;;
        explain) [[ $word == -* ]] || choices="@KINDS@" ;;
        @CLAIMS@) [[ $word == -* || -n $kind ]] || choices=$(_fusevol_names pvc) ;;
        @PODS@) [[ $word == -* || -n $kind ]] || choices=$(_fusevol_names pod) ;;
    esac
    COMPREPLY=($(compgen -W "$choices" -- "$word"))
}
complete -o default -F _fusevol fusevol"""


def command(options: Namespace) -> int:  # noqa: ARG001 - every command is called with its options
    """Print the script."""
    print(bash(parser.build()))
    return EXIT_OK


def bash(root: argparse.ArgumentParser) -> str:
    """The completion script of a parser with commands."""
    commands = _commands(root)
    values, choices, cases = [], [], []
    for name, one in [("", root), *commands.items()]:
        flags: list[str] = []
        positional: list[str] = []
        for action in one._actions:  # noqa: SLF001 - argparse has no public way to look at a parser
            if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
                continue
            words = [str(c) for c in action.choices] if action.choices else []
            flags += action.option_strings
            if not action.option_strings:
                positional += words
            elif action.nargs != 0:
                patterns = "|".join(f'"{name} {flag}"' for flag in action.option_strings)
                values.append(f"            {patterns}) skip=1 ;;")
                if words:
                    choices.append(f'            {patterns}) choices="{" ".join(words)}" ;;')
        if name:
            first = f'if [[ -z $kind && $word != -* ]]; then choices="{" ".join(positional)}"; else '
            rest = f'choices="{" ".join(sorted(flags))}"'
            cases.append(f"        {name}) {f'{first}{rest}; fi' if positional else rest} ;;")
    kinds = sorted({w for kind in objects.KINDS for w in (kind.plural, *kind.short)} | set(LISTINGS))
    filled = {
        "VALUES": "\n".join(values),
        "CHOICES": "\n".join(choices),
        "COMMANDS": " ".join(sorted(commands)),
        "COMMAND_CASES": "\n".join(cases),
        "KINDS": " ".join(kinds),
        "NAMED": "|".join(sorted(_NAMED)),
        "CLAIMS": "|".join(sorted(_CLAIMS)),
        "PODS": "|".join(sorted(_PODS)),
    }
    script = _SCRIPT
    for place, text in filled.items():
        script = script.replace(f"@{place}@", text)
    return script


def _commands(root: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    def found() -> Iterator[tuple[str, argparse.ArgumentParser]]:
        for action in root._actions:  # noqa: SLF001
            if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
                yield from action.choices.items()

    return dict(found())
