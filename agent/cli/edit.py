"""``fusevol edit``: an object in the user's editor."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from agent.cli import output
from agent.cli.resources import get_object, path_to, selections, shown
from agent.client import Client
from fusevol import objects
from fusevol.errors import EXIT_OK, ConflictError, FusevolError, InvalidError, NotFoundError, UsageError

Obj = dict[str, Any]

_HEADER = """\
# Save and leave the editor to change the object. Lines that begin with # are not read; an empty file, or one that
# is not changed, changes nothing.
"""


def command(options: Namespace) -> int:
    """Let the user edit one object, again for as long as the agent refuses what was written."""
    chosen = selections(options.what)
    if len(chosen) != 1 or len(chosen[0].names) != 1:
        raise UsageError("One object can be edited at a time: write KIND/NAME.")
    kind = objects.find_kind(chosen[0].word)
    client = Client(options.socket)
    old = get_object(client, kind, options.namespace, chosen[0].names[0])
    words = _editor()
    descriptor, name = tempfile.mkstemp(prefix=f"{kind.singular}-{old['metadata']['name']}-", suffix=".yaml")
    os.close(descriptor)
    file = Path(name)
    try:
        done = _edited(client, old, words, file)
    except FusevolError as e:
        raise type(e)(f"{e.message} What you wrote is in {file}.") from e
    except BaseException:
        file.unlink()
        raise
    file.unlink()
    if done:
        print(f"{shown(kind, old['metadata']['name'])} edited")
    else:
        output.note("Nothing was changed.")
    return EXIT_OK


def _editor() -> list[str]:
    """The command that VISUAL or EDITOR names, else vi."""
    words = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
    if not words or shutil.which(words[0]) is None:
        raise NotFoundError(f'There is no editor "{" ".join(words)}": set EDITOR to one that is installed.')
    return words


def _edited(client: Client, old: Obj, words: list[str], file: Path) -> bool:
    """Whether the object was changed. Raises what refuses it when the user gives up."""
    text = objects.dump(old, "yaml")
    file.write_text(_HEADER + text, encoding="utf-8")
    refused: FusevolError | None = None
    before = ""
    while True:
        status = subprocess.run([*words, str(file)], check=False).returncode
        if status:
            raise FusevolError(f"The editor {words[0]} ended with status {status}; nothing was changed.")
        after = file.read_bytes()
        body = _body(after)
        if refused is not None and body == before:
            raise refused
        try:
            written = _read(after, file)
            if written is None or written == objects.load(text, str(file))[0]:
                return False
            _check(old, written)
            client.request("PUT", path_to(old), written)
        except ConflictError as e:
            # what the user saw is not what is there now: to edit that again would undo the others' change
            raise ConflictError(f"{e.message}.") from e
        except InvalidError as e:
            refused, before = e, body
            told = "\n".join(f"# {line}" for line in e.message.splitlines())
            file.write_text(f"{_HEADER}#\n{told}\n#\n{body}\n", encoding="utf-8")
        else:
            return True


def _body(content: bytes) -> str:
    """What the user wrote: all lines that are read."""
    return "\n".join(line for line in content.decode(errors="replace").splitlines() if not line.startswith("#"))


def _read(content: bytes, file: Path) -> Obj | None:
    """The one object of the file; None for a file without any."""
    try:
        text = content.decode()
    except UnicodeDecodeError as e:
        raise InvalidError(f"{file} is not a UTF-8 text (byte {e.start}).") from e
    if not any(line.strip() and not line.startswith("#") for line in text.splitlines()):
        return None
    found = objects.load(text, str(file))
    if len(found) != 1:
        raise InvalidError(f"{file} has {len(found)} objects: leave the one that is edited.")
    return found[0]


def _check(old: Obj, new: Obj) -> None:
    """Refuse another object, which would leave the old one as it is."""
    if objects.key(objects.admit(new)) != objects.key(old):
        raise InvalidError("kind, name and namespace cannot be changed: apply a new object and delete the old one.")
