"""Entry point of the ``fusevol`` command: finds the command, runs it, turns errors into sentences and exit codes.

Start-up time is a feature, since a kubelet starts the FlexVolume driver for every mount: a command's module is
imported when it is chosen, and ``flexvolume`` does not even build the parser.

Exit codes: 0 done, 1 failed, 2 the command line was not understood, 130 interrupted by Ctrl-C.
"""

from __future__ import annotations

import importlib
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import cast

from fusevol.errors import EXIT_FAILED, EXIT_OK, FusevolError

EXIT_INTERRUPTED = 130


def main(argv: Sequence[str]) -> int:
    """Run the command line *argv* (without the program's name) and return the exit code."""
    if argv and argv[0] == "flexvolume" and not {"-h", "--help"} & set(argv[1:2]):
        from agent import flexvolume  # noqa: PLC0415 - the fast path

        return flexvolume.main(argv[1:])
    from agent.cli.parser import parse  # noqa: PLC0415 - see the fast path

    debug = "--debug" in argv
    try:
        options = parse(argv)
        code = _command(options.module)(options)
        sys.stdout.flush()
    except FusevolError as e:
        return _failed(e.message, e.exit_code, debug)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # the reader (head, less) has seen enough; Python must not flush into the pipe again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except OSError as e:
        where = f" on {e.filename}" if e.filename else ""
        return _failed(f"The system refused an operation{where}: {e.strerror or e}.", EXIT_FAILED, debug)
    except Exception as e:  # noqa: BLE001 - the last line of defence between a bug of ours and a user
        what = " ".join(f"{type(e).__name__}: {e}".split())
        return _failed(
            f"fusevol has a bug here ({what}): run the command again with --debug and report what it shows.",
            EXIT_FAILED,
            debug,
        )
    return code


def entry() -> None:
    """What the console script calls."""
    sys.exit(main(sys.argv[1:]))


def _command(module: str) -> Callable[[Namespace], int]:
    return cast("Callable[[Namespace], int]", importlib.import_module(f"agent.cli.{module}").command)


def _failed(message: str, code: int, debug: bool) -> int:
    if debug:
        import traceback  # noqa: PLC0415 - costs milliseconds, is rarely wanted

        traceback.print_exc()
    print(f"Error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    entry()
